"""What each patch of a picture adds to its embedding: the tower's last attention, patch by patch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize


@torch.inference_mode()
def patch_rows(model: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]] | None:
    """(rows * columns, d) unit vectors in raster order, and (rows, columns). pixels: (3, H, W), preprocessed.

    A row is what the last attention takes from that patch alone, on its way to the shared space: of CLIP the patch's
    value in the last layer (arXiv 2112.01071), of SigLIP the pooling head's answer to that patch. None for towers that
    are built in another way.
    """
    tower = model.vision_model
    batch = pixels[None].to(next(tower.parameters()).device)
    if hasattr(tower, "head"):
        rows = tower.head(tower(pixel_values=batch).last_hidden_state[0][:, None])
    elif hasattr(tower, "post_layernorm") and hasattr(model, "visual_projection"):
        hidden = tower(pixel_values=batch, output_hidden_states=True).hidden_states[-2][0, 1:]
        layer = tower.encoder.layers[-1]
        values = layer.self_attn.out_proj(layer.self_attn.v_proj(layer.layer_norm1(hidden)))
        rows = model.visual_projection(tower.post_layernorm(values))
    else:
        return None
    side = tower.config.patch_size
    grid = batch.shape[2] // side, batch.shape[3] // side
    return (normalize(rows, dim=1).cpu(), grid) if len(rows) == grid[0] * grid[1] else None
