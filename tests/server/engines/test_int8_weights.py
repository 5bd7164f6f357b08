"""Weights in eight bits: close to float32, row by row, and refused where they would not work."""

import gc
import weakref

import pytest
import torch
from torch import nn

from covervlm.server.demo import model_path
from covervlm.server.engines import registry
from covervlm.server.engines.embedded.int8_weights import Int8Linear, quantize
from covervlm.server.engines.registry import build_engine
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.settings import Settings, SettingsError

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="eight bits need oneDNN")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(outputs: int, inputs: int, *, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.weight.data = drawn(outputs, inputs, seed=1) / inputs**0.5
    return layer


def slowly(layer: nn.Linear, row: torch.Tensor) -> torch.Tensor:
    """One row by the definition, in float64: weights rounded to 255 values of each output's own scale."""
    weight = layer.weight.detach().double()
    scales = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scales).round() * scales @ row.double() + (0 if layer.bias is None else layer.bias.double())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(1, 1), (3, 5)])
@torch.inference_mode()
def test_products_are_those_of_rounded_weights_but_for_the_rounded_inputs(rows, bias):
    layer = linear(96, 64, bias=bias)
    inputs = drawn(*rows, 64)
    outputs = Int8Linear(layer)(inputs).reshape(-1, 96)
    for row, output in zip(inputs.reshape(-1, 64), outputs, strict=True):
        # An input is off by at most half of a step, of which the row's largest has 63.
        off = row.abs().max() / 63 / 2 * layer.weight.abs().sum(1)
        assert ((output - slowly(layer, row)).abs() <= off * 1.01 + 1e-6).all()


@torch.inference_mode()
def test_a_row_beside_a_row_a_thousand_times_larger_is_what_it_is_alone():
    layer = Int8Linear(linear(256, 512))
    small, large = drawn(1, 512), 1000 * drawn(1, 512, seed=2)
    torch.testing.assert_close(layer(torch.cat([small, large]))[:1], layer(small), rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_a_row_of_zeros_gives_the_bias():
    layer = linear(32, 16, bias=True)
    torch.testing.assert_close(Int8Linear(layer)(torch.zeros(1, 16))[0], layer.bias.detach())


@torch.inference_mode()
def test_a_quantized_language_model_is_close_to_the_plain_one():
    plain, adapter = (load_adapter(Checkpoint(model_path())) for _ in range(2))
    assert quantize(adapter) > 0
    ids = torch.randint(5, 100, (2, 40), generator=torch.Generator().manual_seed(0))
    expected, got = (each.lm_head(each.language_model(input_ids=ids).last_hidden_state) for each in (plain, adapter))
    assert (got - expected).norm() < 0.05 * expected.norm()


def test_the_weights_in_float32_are_let_go_and_embeddings_and_output_matrix_stay():
    adapter = load_adapter(Checkpoint(model_path()))
    output, embeddings = adapter.lm_head, adapter.embeddings
    before = [weakref.ref(each.weight) for each in adapter.language_model.modules() if isinstance(each, nn.Linear)]
    assert quantize(adapter) == len(before)
    gc.collect()
    assert not any(weight() is not None for weight in before)
    assert adapter.lm_head is output
    assert adapter.embeddings is embeddings


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="float32 on a CPU with oneDNN, but the model is in bfloat16 on cpu"):
        quantize(load_adapter(Checkpoint(model_path(), dtype="bfloat16")))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"device": "cuda"}, "float32 on a CPU, not for --device cuda"),
        ({"device": "cuda:1"}, "float32 on a CPU, not for --device cuda:1"),
        ({"dtype": "float16"}, "float32 on a CPU, not for --device auto with --dtype float16"),
    ],
)
def test_eight_bits_on_a_gpu_or_of_half_precision_are_refused_before_loading(options, reason):
    with pytest.raises(SettingsError, match=f"quantization: int8 is for {reason}"):
        build_engine(Settings(engine="transformers", quantization="int8", **options))


def test_vllm_has_names_of_its_own_for_it():
    with pytest.raises(SettingsError, match="int8 is for --engine transformers on a CPU; vLLM has its own"):
        registry._vllm_config(None, Settings(engine="vllm", quantization="int8"))
