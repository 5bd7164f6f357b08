"""Patches: CLIP's values and SigLIP's pooling head, each compared with the tower's own way to its embedding."""

import torch
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from covervlm.server.clip.encoder.patches import patch_rows

VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = VISION | {"vocab_size": 30}


def clip(**vision) -> CLIPModel:
    torch.manual_seed(0)
    size = {"image_size": 8, "patch_size": 8} | vision
    return CLIPModel(CLIPConfig(vision_config=VISION | size, text_config=TEXT, projection_dim=12)).eval()


def test_of_clip_a_patch_is_its_value_in_the_last_layer():
    """With the attention fixed on one patch, and nothing added to it, the pooled output would be just that."""
    model = clip(image_size=32)
    pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows, grid = patch_rows(model, pixels)
    assert (rows.shape, grid) == ((16, 12), (4, 4))
    tower = model.vision_model
    seen = {}
    last = tower.encoder.layers[-1].self_attn
    hook = last.v_proj.register_forward_hook(lambda module, inputs, output: seen.setdefault("values", output))
    tower(pixel_values=pixels[None])
    hook.remove()
    for patch in (0, 7, 15):
        value = last.out_proj(seen["values"][0, 1 + patch])
        expected = normalize(model.visual_projection(tower.post_layernorm(value)), dim=0)
        torch.testing.assert_close(rows[patch], expected.detach())


def test_of_siglip_a_patch_is_what_pooling_makes_of_it_alone():
    torch.manual_seed(0)
    vision = VISION | {"image_size": 8, "patch_size": 8}
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=TEXT | {"projection_size": 16})).eval()
    pixels = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    [row], grid = patch_rows(model, pixels)
    # Of a picture with a single patch, that is the whole embedding.
    whole = normalize(model.get_image_features(pixel_values=pixels[None]).pooler_output[0], dim=0)
    torch.testing.assert_close(row, whole.detach())
    assert grid == (1, 1)


def test_towers_built_in_another_way_have_none():
    model = clip()
    del model.visual_projection
    assert patch_rows(model, torch.zeros(3, 8, 8)) is None
