"""Kept tokens of clips have the positions that transformers gives them in the whole prompt; no engine runs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from covervlm.server.core.generation import ImagePart, Message, VideoPart
from covervlm.server.engines.vllm.plugin.plan import FIELDS, Plan
from covervlm.server.engines.vllm.plugin.qwen2_5_vl import PruningQwen2_5_VL
from covervlm.server.engines.vllm.plugin.qwen3_vl import PruningQwen3VL
from covervlm.server.models.checkpoint import Checkpoint, load_adapter

MODELS = {"qwen2_5_vl": PruningQwen2_5_VL, "qwen3_vl": PruningQwen3VL}
WIDTH = 4


def noise(width, height, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def film(count, seed, fps):
    return VideoPart(tuple(noise(112, 80, seed + i) for i in range(count)), str(seed), fps)


@pytest.fixture(scope="module", params=MODELS)
def loaded(request, checkpoints):
    adapter = load_adapter(Checkpoint(checkpoints[request.param]))
    model = MODELS[request.param].__new__(MODELS[request.param])
    nn.Module.__init__(model)
    model.config = adapter.model.config
    return adapter, model


def planned(adapter, part, kept, total):
    """The plan of a part of which some places stay, or all."""
    architecture, processor = adapter.architecture, adapter.chat.image_processor
    frames, fps = (len(part.frames), part.fps) if isinstance(part, VideoPart) else (0, 0.0)
    if frames:
        shape = architecture.clip_shape(*part.frames[0].size, frames, processor)
    else:
        _, rows, columns = adapter.preprocess(part.image)["grid"].tolist()
        shape = (rows // processor.merge_size, columns // processor.merge_size)
    count = total if kept is None else len(kept)
    return Plan(bytes(16), shape, "mmtok", 0 if kept is None else count, count, frames=frames, fps=fps)


def begins(ids, slot, config, plan):
    """Where vLLM's placeholder of an image or clip begins; Qwen3-VL's of a clip has the first time before it."""
    if config.model_type != "qwen3_vl" or not plan.frames:
        return slot
    return slot - ids[slot - 2 :: -1].index(config.vision_start_token_id) - 1


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("fps", [0.01, 0.3, 2.0, 24.0])
def test_positions_are_those_of_transformers_where_they_stay(loaded, fps, prune):
    adapter, model = loaded
    config = adapter.model.config
    parts = [ImagePart(noise(90, 60, 1), "picture"), film(5, 10, fps), film(2, 20, 1.0)]
    ids = adapter.tokenize((Message("user", (*parts, "What happens?")),))
    images = adapter.encode(
        [
            adapter.preprocess_video(part.frames, part.fps)
            if isinstance(part, VideoPart)
            else adapter.preprocess(part.image)
            for part in parts
        ]
    )
    generator = torch.Generator().manual_seed(3)
    kept = []
    for image in images:
        picks = [torch.randperm(len(one.positions), generator=generator)[:3] for one in image.layout.parts]
        kept.append(image.layout.positions(picks) if prune else None)
    _, wanted = adapter.assemble(ids, images, kept)
    counts = [count for image, places in zip(images, kept, strict=True) for count in image.layout.counts(places)]
    read = list(adapter.expanded(ids, counts))

    features, embeddings, passed, number = [], [], 0, 0
    for part, image, places in zip(parts, images, kept, strict=True):
        plan = planned(adapter, part, places, image.layout.total)
        slot = adapter.chat.slots(ids)[number]
        offset = begins(read, slot + passed, config, plan)
        own = counts[number : number + image.layout.slots]
        passed, number = passed + sum(own) - len(own), number + len(own)
        modality = "video" if plan.frames else "image"
        grid = torch.tensor([plan.shape[0] if plan.frames else 1, *(2 * side for side in plan.shape[-2:])])
        data = {
            f"{modality}_grid_thw": SimpleNamespace(data=grid),
            FIELDS[modality]: SimpleNamespace(data=plan.to_tensor()),
        }
        features.append(SimpleNamespace(modality=modality, data=data, mm_position=SimpleNamespace(offset=offset)))
        tokens = torch.zeros(plan.kept, WIDTH)
        channels = model._finished(
            tokens,
            image.layout.positions([torch.arange(len(one.positions)) for one in image.layout.parts])
            if places is None
            else places,
            plan,
        )
        embeddings.append(channels if prune else torch.zeros_like(channels))

    first, following = model.get_mrope_input_positions(read, features)
    assert len(read) + following == int(wanted[0, -1])
    cut, positions, same = model.recompute_mrope_positions(read, embeddings, first, 0)
    assert all(torch.equal(one, torch.zeros(len(one), WIDTH)) for one in cut)
    assert torch.equal(positions, wanted[:, :-1])
    assert same == following
    # Once more, for the last clip alone, as where a prompt's beginning was read before.
    _, again, same = model.recompute_mrope_positions(read, embeddings[2:], positions, features[2].mm_position.offset)
    assert torch.equal(again, positions)
    assert same == following
