"""The language model's layers in eight bits on a CPU: a quarter of the memory, which is what bounds a decoding step."""

import torch
from torch import Tensor, nn

from covervlm.server.models.base import Adapter

_WEIGHTS, _INPUTS = 127, 63
"""The largest magnitudes. Seven bits of inputs, as sums of two products with eight overflow on CPUs without VNNI."""
_ZERO = 64
"""What an input of zero is stored as, since oneDNN takes inputs without a sign."""
_TINY = 1e-30
"""Stands in for the size of a row of zeros, whose product is zero whatever it is divided by."""


class Int8Linear(nn.Module):
    """A linear layer with a scale for each output, whose inputs are rounded row by row as they come.

    A row has its own scale, so that it does not depend on its batch, and because in many models the first token is a
    hundred times larger than the others.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        weight = linear.weight.detach()
        self._scales = weight.abs().amax(1).clamp_min(_TINY) / _WEIGHTS
        self._zeros = torch.zeros(len(weight), dtype=torch.int)
        rounded = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(-1, self.in_features)
        sizes = rows.abs().amax(1, keepdim=True).clamp_min(_TINY)
        # All are above zero, where cutting off after adding a half is rounding.
        rounded = (rows * (_INPUTS / sizes)).add_(_ZERO + 0.5).to(torch.uint8)
        inputs_as, weights_as = (rounded, 1 / _INPUTS, _ZERO), (self._weight, self._scales, self._zeros)
        product = torch.ops.onednn.qlinear_pointwise(
            *inputs_as, *weights_as, None, 1.0, 0, torch.float32, "none", [], ""
        ).mul_(sizes)
        if self.bias is not None:
            product.add_(self.bias)
        return product.reshape(*inputs.shape[:-1], self.out_features)


def quantize(adapter: Adapter) -> int:
    """Round the weights of the language model's layers to eight bits; returns how many they are.

    Embeddings, output matrix, vision tower and projector stay as they are. Each takes the place of its layer, so that
    only one matrix at a time is in memory twice. Raises ValueError for what is not float32 on a CPU with oneDNN.
    """
    weight = adapter.embeddings.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        raise ValueError(
            f"--quantization int8 is for float32 on a CPU with oneDNN, "
            f"but the model is in {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        )
    quantized = 0
    for parent in list(adapter.language_model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and layer.weight is not weight:
                setattr(parent, name, Int8Linear(layer))
                quantized += 1
    return quantized
