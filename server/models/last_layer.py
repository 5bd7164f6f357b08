"""A transformer's last layer, of which a pass computes only what somebody reads.

Modules compute less for one pass alone, by a `forward` of their own, so that everybody else finds the model as it is.
One thread may run the model.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

_USUAL = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


@contextmanager
def read_at(model: nn.Module, rows: Tensor, places: Tensor) -> Iterator[None]:
    """The hidden states of a decoder's passes in this context are right at (rows[i], places[i]), and nowhere else.

    What a layer keeps of its input, keys and values, is complete. Decoders whose last layer is not built of the usual
    parts compute everything.
    """
    layers: Any = getattr(model, "layers", None) or [nn.Identity()]
    mlp, attention = getattr(layers[-1], "mlp", None), getattr(layers[-1], "self_attn", None)
    parts: list[Any] = [mlp] if hasattr(mlp, "down_proj") else []
    parts += [part for name in ("q_proj", "o_proj") if (part := getattr(attention, name, None)) is not None]
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(_computing(part, _at(part.forward, rows, places)))
        yield


@contextmanager
def picking(model: nn.Module, rows: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """A decoder's passes in this context end with some rows of its hidden states (B, T, d), and leave out the others.

    The context's value picks them from the hidden states, where a last layer that is not built of the usual parts has
    computed them all.
    """
    layers: Any = getattr(model, "layers", None) or [nn.Identity()]
    layer = layers[-1]
    if {name for name, _ in layer.named_children()} != _USUAL:
        yield lambda hidden: hidden[rows]
        return

    def forward(hidden_states: Tensor, **kwargs: object) -> Tensor:
        attention, *_ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        picked = (hidden_states + attention)[rows]
        output: Tensor = picked + layer.mlp(layer.post_attention_layernorm(picked))
        return output

    with _computing(layer, forward):
        yield lambda hidden: hidden


def _at(forward: Callable[[Tensor], Tensor], rows: Tensor, places: Tensor) -> Callable[[Tensor], Tensor]:
    def compute(states: Tensor) -> Tensor:
        read = forward(states[rows, places][:, None])[:, 0]
        full = read.new_zeros(*states.shape[:2], read.shape[-1])
        full[rows, places] = read
        return full

    return compute


@contextmanager
def unread(layer: nn.Module) -> Iterator[None]:
    """The output of a vision tower's layer is not read in this context: it costs nothing, and says nothing."""

    def attention(hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        return hidden_states, None

    def mlp(hidden_states: Tensor) -> Tensor:
        return hidden_states

    with _computing(layer.self_attn, attention), _computing(layer.mlp, mlp):
        yield


@contextmanager
def _computing(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
