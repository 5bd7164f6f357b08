import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model.scenes import make_scene
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor, CLIPModel, LlavaForConditionalGeneration

from covervlm.server.core.generation import (
    GenerationRequest,
    ImagePart,
    Message,
    PruningPolicy,
    SamplingParams,
)
from covervlm.server.demo import clip_path, example_gallery, example_scenes, model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel of a copy of the sources, so that no build output lands in the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    sources = out / "sources"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, names.split("\0")):
        source, target = ROOT / name, sources / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=sources, check=True, capture_output=True)
    (archive,) = out.glob("*.whl")
    unpacked = out / "unpacked"
    zipfile.ZipFile(archive).extractall(unpacked)
    return unpacked


def test_the_wheel_carries_every_data_file_unchanged(wheel):
    for folder in ("llava", "clip", "scenes"):
        sources = sorted((ROOT / "server/demo" / folder).iterdir())
        assert sources
        for source in sources:
            assert (wheel / "covervlm/server/demo" / folder / source.name).read_bytes() == source.read_bytes()
    assert (wheel / "covervlm/server/demo/MODEL_CARD.md").is_file()


def test_an_installed_wheel_finds_its_own_models_and_scenes(wheel):
    program = (
        "import json; from covervlm.server.demo import clip_path, example_scenes, model_path\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel\n"
        "import torch\n"
        "model = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32)\n"
        "CLIPModel.from_pretrained(clip_path())\n"
        "AutoProcessor.from_pretrained(model_path())\n"
        "places = [model_path(), clip_path(), *[scene.path for scene in example_scenes()]]\n"
        "print(json.dumps([str(place.resolve()) for place in places if place.exists()]))\n"
    )
    # -S keeps the editable install of the checkout away; the packages it needs are put back by hand.
    packages = str(Path(torch.__file__).parents[1])
    environment = {"PYTHONPATH": f"{wheel}:{packages}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-S", "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout.splitlines()[-1])
    assert len(places) == 2 + len(example_scenes())
    assert all(place.startswith(str(wheel.resolve())) for place in places)


def test_the_demo_model_is_a_llava_with_576_vision_tokens_that_loads_as_float32():
    model = LlavaForConditionalGeneration.from_pretrained(model_path(), dtype=torch.float32)
    assert model.dtype == torch.float32
    assert model.config.image_seq_length == 576
    processor = AutoProcessor.from_pretrained(model_path())
    with Image.open(example_scenes()[0].path) as image:
        inputs = processor(images=image.convert("RGB"), text="USER: <image>\nhi ASSISTANT:", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 576


def test_both_models_share_one_vision_tower():
    llava, clip = load_file(model_path() / "model.safetensors"), load_file(clip_path() / "model.safetensors")
    prefix = "vision_model."
    tower = {name.removeprefix(prefix): value for name, value in clip.items() if name.startswith(prefix)}
    assert len(tower) > 90
    for name, value in tower.items():
        match = [other for key, other in llava.items() if "vision_tower" in key and key.endswith(name)]
        assert len(match) == 1, name
        assert torch.equal(match[0], value), name
    assert CLIPModel.from_pretrained(clip_path()).config.projection_dim == 64


def test_the_chat_template_is_llava_1_5s():
    processor = AutoProcessor.from_pretrained(model_path())
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is the star?"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert prompt == "USER: <image>\nWhat color is the star? ASSISTANT:"
    assert AutoConfig.from_pretrained(model_path()).architectures == ["LlavaForConditionalGeneration"]


async def test_the_model_is_right_about_its_examples_unpruned_and_with_64_tokens():
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    await engine.start()
    try:
        for scene in example_scenes():
            image = Image.open(scene.path).convert("RGB")
            assert image.size == (336, 336)
            message = Message("user", (ImagePart(image, scene.path.name), scene.question))
            for policy in (PruningPolicy(), PruningPolicy(keep_tokens=64)):
                sampling = SamplingParams(temperature=0.0, max_tokens=8)
                request = GenerationRequest(scene.path.name, (message,), sampling, policy)
                answer = "".join([chunk.text async for chunk in engine.generate(request)])
                assert answer.strip() == scene.answer, scene.question
    finally:
        await engine.stop()


def test_examples_are_small_and_of_different_kinds():
    scenes = example_scenes()
    assert 4 <= len(scenes) <= 6
    assert len({scene.answer for scene in scenes}) == len(scenes)
    assert all(scene.path.stat().st_size < 150_000 for scene in scenes)


def test_the_gallery_is_small_and_its_names_tell_the_scenes_that_it_shows():
    pictures = example_gallery()
    assert len(pictures) == 24
    assert sum(path.stat().st_size for path in pictures) < 150_000
    for path in pictures[::8]:
        color, shape, seed = path.stem.split("-")
        scene = make_scene(int(seed), 1)
        assert [(thing.color, thing.shape) for thing in scene.objects] == [(color, shape)]
        with Image.open(path) as image:
            difference = np.asarray(image.convert("RGB"), float) - np.asarray(scene.image, float)
        assert np.abs(difference).mean() < 8
