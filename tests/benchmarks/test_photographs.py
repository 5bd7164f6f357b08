"""What methods keep of pictures: the figures by their definition, and the section that they are written in."""

import photographs
import pytest
import torch
from evaluation.question_sets import scene_of
from PIL import Image
from torch.nn.functional import normalize

from covervlm.pruners import PruneInput, get_pruner
from covervlm.server.demo import model_path
from covervlm.server.models.checkpoint import Checkpoint, load_adapter

IMAGES = [scene_of("standard", 3).image, Image.effect_noise((300, 200), 80).convert("RGB")]


@pytest.fixture(scope="module")
def adapter():
    torch.set_num_threads(1)
    return load_adapter(Checkpoint(model_path()))


@pytest.fixture(scope="module")
def kept(adapter):
    return photographs.measure(adapter, IMAGES)


@torch.inference_mode()
@pytest.mark.parametrize("method", ["mmtok", "text_coverage", "uniform"])
def test_shares_and_coverage_are_those_of_the_definition(adapter, kept, method):
    text = adapter.question_embeddings(photographs.QUESTION)
    for number, image in enumerate(IMAGES):
        [seen] = adapter.encode([adapter.preprocess(image)], cls_attention=False)
        asked = PruneInput(seen.tokens, seen.features, text, grid=(24, 24))
        alike = (normalize(seen.features, dim=1) @ normalize(seen.features, dim=1).T / 0.2).softmax(dim=1).double()
        for count in (4, 64):
            ours, theirs = (get_pruner(name).select([asked], count)[0].tolist() for name in ("mmtok", method))
            assert kept.common[method, count][number] == len({*ours} & {*theirs}) / count
            reached = float(alike[:, theirs].amax(1).sum() / alike.amax(1).sum())
            assert kept.coverage[method, count][number] == pytest.approx(reached, abs=1e-5)


def test_the_last_section_alone_is_written_anew(adapter, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "load_adapter", lambda _: adapter)
    monkeypatch.setattr(photographs, "photographs", lambda _: IMAGES)
    monkeypatch.setattr(photographs, "measure", lambda *_: kept)
    out = tmp_path / "quality.md"
    out.write_text("# Accuracy\n\nmmtok 90\n")
    monkeypatch.setattr("sys.argv", ["photographs.py", "--out", str(out)])
    for _ in range(2):
        photographs.main()
        text = out.read_text()
        assert text.startswith("# Accuracy\n\nmmtok 90\n\n## Photographs\n\n")
        assert text.count("\n## ") == 1
    assert [line.split()[1] for line in text.splitlines() if line.startswith("| mmtok ")] == ["mmtok"] * 2
    assert (tmp_path / "photographs.png").read_bytes().startswith(b"\x89PNG")
