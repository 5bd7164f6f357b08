"""The language model's large matrices, laid out for oneDNN: several times quicker than MKL at few rows on many CPUs."""

import torch
from torch import Tensor, nn

from covervlm.server.models.base import Adapter

_SMALLEST = 2**20
"""Weights of a matrix from which packing pays: smaller ones stay in a CPU's caches, and calling oneDNN costs more."""


class PackedLinear(nn.Module):
    """A linear layer over float32 on the CPU whose weights nobody else can read any more."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # Laid out for one row: of the layouts that oneDNN chooses among, the one that is good at every number of rows.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self.bias, "none", [], "")


def pack(adapter: Adapter) -> int:
    """Pack the language model's linear layers with enough weights; returns how many they are.

    Each takes the place of its layer, so that only one matrix at a time is in memory twice. Tied embeddings stay as
    they are, since the model reads their rows too, and so does everything that is not float32 on a CPU with oneDNN.
    """
    packed = 0
    if not torch.backends.mkldnn.is_available():
        return packed
    model, embeddings = adapter.model, adapter.embeddings.weight
    for parent in [*adapter.language_model.modules(), model]:
        for name, layer in parent.named_children():
            if type(layer) is not nn.Linear or layer.weight is embeddings:
                continue
            weight = layer.weight
            if weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() >= _SMALLEST:
                setattr(parent, name, PackedLinear(layer))
                packed += 1
    adapter.lm_head = model.lm_head
    return packed
