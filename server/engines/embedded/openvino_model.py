"""The language model as OpenVINO runs it on a CPU, with attention over blocks of keys and values."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from covervlm.server.engines.embedded.model_runner import reads_everything
from covervlm.server.models.base import Adapter
from covervlm.server.models.last_layer import picking

if TYPE_CHECKING:
    import openvino

# OpenVINO tells its makers whenever it is imported, unless it finds no means to.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_FIXED_ROTATIONS = {"default", "linear", "dynamic", "llama3", "yarn"}
"""Kinds of rotary positions that do not depend on how long a text is, as long as the model takes it."""


def unsuited(adapter: Adapter) -> str | None:
    """Why OpenVINO cannot run this language model as transformers does; None where it can."""
    weight = adapter.embeddings.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return (
            f"the model is in {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}, not float32 on a CPU"
        )
    if adapter.position_axes != 1:
        return f"its positions have {adapter.position_axes} axes, and OpenVINO's have one"
    config: Any = adapter.language_model.config
    if not reads_everything(config):
        return "some of its layers read a part of the text only"
    rotations = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return None if rotations in _FIXED_ROTATIONS else f"its positions change with the text's length ({rotations})"


def compile_model(adapter: Adapter) -> openvino.CompiledModel:
    """Compile the language model up to its last hidden states, for torch's number of threads.

    Inputs are those of OpenVINO's paged attention: `inputs_embeds` (T, d) of all rows' new tokens one after the other,
    `position_ids` (T,), and where each row's blocks are; and `read` (N,), of which tokens the hidden states (N, 1, d)
    are wanted. Raises ValueError where `unsuited` has a reason, or OpenVINO does not page the model's attention.
    """
    import openvino
    from openvino._offline_transformations import (
        apply_make_stateful_transformation,
        apply_moc_transformations,
        paged_attention_transformation,
    )

    if (reason := unsuited(adapter)) is not None:
        raise ValueError(f"--runtime openvino cannot run this model: {reason}; leave the option out")
    config: Any = adapter.language_model.config
    heads, layers = config.num_key_value_heads, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    model = _traced(adapter, heads, size)
    past, present = ([f"{name}.{side}" for side in range(2 * layers)] for name in ("past", "present"))
    _name(model.inputs, ["inputs_embeds", "attention_mask", "position_ids", "read", *past])
    _name(model.outputs, ["last_hidden_state", *present])
    for port in model.inputs:
        shapes = {
            "inputs_embeds": [-1, -1, config.hidden_size],
            "attention_mask": [-1, 1, -1, -1],
            "position_ids": [-1, -1],
            "read": [-1],
        }
        port.get_node().set_partial_shape(openvino.PartialShape(shapes.get(port.any_name, [-1, heads, -1, size])))
    model.validate_nodes_and_infer_types()
    apply_moc_transformations(model, cf=False)
    _reorder(model, past)
    apply_make_stateful_transformation(model, dict(zip(past, present, strict=True)))
    _begin_empty(model, heads, size)
    paged_attention_transformation(model)
    if any(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ops()):
        raise ValueError(
            "--runtime openvino cannot run this model: its attention is of a kind that OpenVINO does not page"
        )
    return openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # Other threads of the server need the processors too.
            "ENABLE_CPU_PINNING": False,
        },
    )


class _Growing(DynamicLayer):
    """A layer's keys and values as a trace shows them: what was, and what comes."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        self.keys = torch.cat([self.keys, key_states], -2)
        self.values = torch.cat([self.values, value_states], -2)
        return self.keys, self.values

    def get_seq_length(self, *args: object) -> int:
        return self.keys.shape[-2]


class _Traceable(nn.Module):
    """Tensors in and out, keys and values of the layers in turn among them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(
        self, embeddings: Tensor, mask: Tensor, positions: Tensor, read: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        layers = [_Growing(*sides) for sides in zip(past[::2], past[1::2], strict=True)]
        with picking(self._model, read) as picked:
            hidden = self._model(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=Cache(layers=[*layers]),
                use_cache=True,
            ).last_hidden_state
        return picked(hidden), *(side for layer in layers for side in (layer.keys, layer.values))


def _traced(adapter: Adapter, heads: int, size: int) -> openvino.Model:
    """The graph of a pass over some rows, tokens and earlier tokens, of which the graph keeps no number."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    config: Any = adapter.language_model.config
    rows, tokens, before = 2, 3, 4
    example = (
        torch.zeros(rows, tokens, config.hidden_size),
        torch.zeros(rows, 1, tokens, before + tokens),
        torch.arange(before, before + tokens).repeat(rows, 1),
        torch.arange(rows),
        *(torch.zeros(rows, heads, before, size) for _ in range(2 * config.num_hidden_layers)),
    )
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # What the trace takes for constant does not change; the compiled model is compared with this one.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        decoder = TorchScriptPythonDecoder(_Traceable(adapter.language_model).eval(), example_input=example)
        frontend = FrontEndManager().load_by_framework("pytorch")
        return frontend.convert(frontend.load(decoder))


def _name(ports: Sequence[Any], names: Sequence[str]) -> None:
    for port, name in zip(ports, names, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_friendly_name(name)


def _reorder(model: openvino.Model, past: Sequence[str]) -> None:
    """Let an input choose whose keys and values a row goes on from: so the pass that pages them knows a state."""
    from openvino import opset13 as op

    beam = op.parameter([-1], np.int32, name="beam_idx")
    _name(beam.outputs(), ["beam_idx"])
    for port in model.inputs:
        if port.any_name in past:
            users = list(port.get_target_inputs())
            chosen = op.gather(port, beam, op.constant(0))
            for user in users:
                user.replace_source_output(chosen.output(0))
    model.add_parameters([beam])


def _begin_empty(model: openvino.Model, heads: int, size: int) -> None:
    """Every state begins as no tokens of as many rows as there are."""
    from openvino import opset13 as op

    rows = op.gather(op.shape_of(model.input("inputs_embeds"), output_type="i64"), op.constant([0]), op.constant(0))
    shape = op.concat([rows, op.constant(np.array([heads, 0, size], np.int64))], axis=0)
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([op.broadcast(op.constant(np.float32(0)), shape)])
    model.validate_nodes_and_infer_types()
