"""Parts of the networks that are rewritten for speed: the same numbers as diffusers' and transformers' own."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")

TOLERANCE = 2e-5
"""Relative to the largest number: single precision, sums in another order."""


def assert_same(found: Any, wanted: Any) -> None:
    import torch

    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE * float(wanted.abs().max()))


def rewritten(part: Any) -> Any:
    """A copy of a part as its owner has it afterwards, and what is applied to the time embedding."""
    import torch

    from rtevo.generate.channels_last import rework

    owner = torch.nn.ModuleDict({"attn1": copy.deepcopy(part)})
    times = rework(owner)
    return owner["attn1"].to(memory_format=torch.channels_last), times


@pytest.mark.parametrize("side", [8, 40])  # as a matrix product, and as a convolution
@pytest.mark.parametrize(("told", "width"), [(True, 96), (True, 64), (False, 96)])
def test_residual_blocks(side: int, told: bool, width: int) -> None:
    import torch
    from diffusers.models.resnet import ResnetBlock2D

    torch.manual_seed(0)
    own = ResnetBlock2D(
        in_channels=64, out_channels=width, temb_channels=32 if told else None, time_embedding_norm="default" if told else "group"
    )
    part, times = rewritten(own.eval())
    assert type(part) is not ResnetBlock2D
    x, embedding = torch.randn((2, 64, side, side)) + 3, torch.randn((2, 32))
    with torch.no_grad():
        wanted, found = own(x, embedding if told else None), part(x, times(embedding) if told else None)
    assert_same(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_upsampling() -> None:
    import torch
    from diffusers.models.upsampling import Upsample2D

    torch.manual_seed(0)
    own = Upsample2D(32, use_conv=True, out_channels=48)
    part, _ = rewritten(own)
    assert type(part) is not Upsample2D
    x = torch.randn((2, 32, 7, 5))
    with torch.no_grad():
        assert_same(part(x), own(x))
    with pytest.raises(ValueError, match="expected twice the size"):
        part(x, (13, 9))


@pytest.mark.parametrize("linear", [True, False])
def test_transformers(linear: bool) -> None:
    import torch
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    torch.manual_seed(0)
    own = Transformer2DModel(2, 32, in_channels=64, cross_attention_dim=24, norm_num_groups=32, use_linear_projection=linear).eval()
    part, _ = rewritten(own)
    assert type(part) is not Transformer2DModel
    x, words = torch.randn((2, 64, 6, 5)), torch.randn((2, 7, 24))
    with torch.no_grad():
        wanted, found = own(x, encoder_hidden_states=words, return_dict=False)[0], part(x, encoder_hidden_states=words)[0]
    assert_same(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_decoders_attention() -> None:
    import torch
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    options: dict[str, Any] = {"norm_num_groups": 32, "residual_connection": True, "bias": True, "_from_deprecated_attn_block": True}
    own = Attention(64, heads=1, dim_head=64, rescale_output_factor=2.0, **options).eval()
    part, _ = rewritten(own)
    assert type(part.processor) is not type(own.processor)
    x = torch.randn((1, 64, 6, 5))
    with torch.no_grad():
        assert_same(part(x), own(x))


def test_the_image_encoder() -> None:
    import torch
    import transformers

    from rtevo.generate.channels_last import rework_encoder

    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, projection_dim=16, image_size=28, patch_size=14
    )
    own = transformers.CLIPVisionModelWithProjection(config).eval()
    other = copy.deepcopy(own)
    rework_encoder(other)
    assert sum("_EncoderAttention" in type(part).__name__ for part in other.modules()) == 2
    x = torch.randn((1, 3, 28, 28))
    with torch.no_grad():
        assert_same(other(x).image_embeds, own(x).image_embeds)


def test_what_is_not_as_expected_stays_as_it_is() -> None:
    import torch
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    from rtevo.generate.channels_last import rework

    scaled = ResnetBlock2D(in_channels=32, temb_channels=32, time_embedding_norm="scale_shift")
    owner = torch.nn.ModuleList([scaled, ResnetBlock2D(in_channels=32, temb_channels=32), Upsample2D(32)])
    times = rework(owner)
    assert [type(part).__name__ for part in owner] == ["ResnetBlock2D", "_Resnet", "Upsample2D"]
    assert isinstance(times, torch.nn.Identity)  # a part that is left alone needs the embedding itself
