"""Checkpoints that must not be served are refused: without weights, with pickled ones, of other kinds, with code."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.demo import clip_path, model_path
from covervlm.server.models.checkpoint import Checkpoint, load_adapter

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(model_path(), tmp_path / "checkpoint")


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def without(folder, name):
    weights = load_file(folder / WEIGHTS)
    del weights[name]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        load_adapter(Checkpoint(folder))


def test_pickled_weights_are_not_read(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        load_adapter(Checkpoint(folder))


def test_weights_cut_off(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(Exception, match=r"incomplete|deserializ"):
        load_adapter(Checkpoint(folder))


def test_weights_that_lack_a_tensor_are_not_made_up(folder):
    without(folder, "language_model.lm_head.weight")
    with pytest.raises(OSError, match=r"1 weights of the model are missing, e\.g\. lm_head\.weight"):
        load_adapter(Checkpoint(folder))


def test_clip_weights_that_lack_a_tensor_are_not_made_up(tmp_path):
    folder = shutil.copytree(clip_path(), tmp_path / "clip")
    without(folder, "visual_projection.weight")
    with pytest.raises(ValueError, match=r"1 weights of the model are missing, e\.g\. visual_projection\.weight"):
        ClipEncoder(str(folder), device="cpu")


def test_another_architecture(folder):
    configure(folder, architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError, match="LlamaForCausalLM is not supported; supported are LlavaFor"):
        load_adapter(Checkpoint(folder))


@pytest.mark.parametrize("kind", ["llava", "of_its_own"])
def test_code_that_comes_with_a_checkpoint_is_not_run(folder, kind):
    ran = folder / "ran"
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import LlavaConfig, LlavaForConditionalGeneration\n"
        "class Config(LlavaConfig): model_type = 'of_its_own'\nclass Model(LlavaForConditionalGeneration): pass\n"
    )
    configure(
        folder,
        model_type=kind,
        auto_map={"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"},
    )
    if kind == "llava":
        assert load_adapter(Checkpoint(folder)).context_length > 0
    else:
        with pytest.raises(ValueError, match="custom code"):
            load_adapter(Checkpoint(folder))
    assert not ran.exists()
