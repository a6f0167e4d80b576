"""diffusers' networks with some parts rewritten for speed: the same sums, channels last from end to end.

Replaced parts (only exact matches; all others stay as they are):

- group norm, activation, and the addition before them, in one operation that stays channels last (:mod:`rtevo.generate.fused`);
- convolutions of few pixels and many channels as one matrix product, for which that operation lays out its result:
  libraries for convolutions cut them into too few pieces for a large GPU;
- all projections of the time embedding in one product a step, with the biases of the convolutions that they are added to;
- queries, keys and values in one product, also in the image encoder;
- transformers pass their tensor on without a transposition;
- the decoder's attention of one wide head as two matrix products, because no attention kernel suits it;
- nearest-neighbour upsampling and the convolution after it as one convolution of the small picture: each pixel of the large one sees two
  by two of the small one's, so that 4 of 9 products are left (Shi et al. 2016, arXiv:1609.07009, the other way round).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from rtevo.generate import fused

__all__ = ["rework", "rework_encoder"]

FEW_PIXELS = 1152
"""Up to this many pixels of all pictures together, a convolution is a matrix product: measured on an H200 (docs/generator.md)."""


def rework(network: nn.Module) -> nn.Module:
    """Rewrite the known parts of a network; its results stay the same, within rounding.

    Parameters
    ----------
    network : nn.Module
        A diffusers UNet or decoder, in evaluation mode; changed.

    Returns
    -------
    nn.Module
        Module to apply to the time embedding before the network's blocks use it.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.upsampling import Upsample2D

    resnets = [part for part in network.modules() if isinstance(part, ResnetBlock2D)]
    times = _Times() if all(_is_plain_resnet(part) for part in resnets) else None
    kinds: dict[type, Any] = {
        ResnetBlock2D: lambda part: _Resnet(part, times) if _is_plain_resnet(part) else part,
        Transformer2DModel: lambda part: _Transformer(part) if _is_plain_transformer(part) else part,
        Upsample2D: lambda part: _Upsample(part) if _is_plain_upsampling(part) else part,
    }
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if type(part) in kinds:
                setattr(parent, name, kinds[type(part)](part))
    for name, part in network.named_modules():
        if isinstance(part, Attention) and name.endswith("attn1") and _is_plain_attention(part):
            part.set_processor(_SelfAttention(part))
            part.to_q = part.to_k = part.to_v = nn.Identity()  # the joint product holds their weights
        elif isinstance(part, Attention) and part.group_norm is not None and part.heads == 1 and part.spatial_norm is None:
            part.set_processor(_WideHead())
    owners: tuple[Any, ...] = (network, getattr(network, "decoder", None))
    for owner in owners:
        if isinstance(getattr(owner, "conv_norm_out", None), nn.GroupNorm) and isinstance(getattr(owner, "conv_act", None), nn.SiLU):
            owner.conv_norm_out, owner.conv_act = _Norm(owner.conv_norm_out, silu=True), nn.Identity()
    return nn.Identity() if times is None else times.finish()


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class _Norm(nn.Module):
    """Group norm, with optional activation."""

    def __init__(self, norm: nn.GroupNorm, silu: bool) -> None:
        super().__init__()
        self.norm, self.silu = norm, silu

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        norm = self.norm
        found: torch.Tensor = fused.group_norm(_last(x), norm.weight, norm.bias, shift, norm.num_groups, norm.eps, self.silu)
        return found

    def convolved(self, x: torch.Tensor, conv: nn.Conv2d, shift: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise, activate, and convolve with three by three pixels, without the convolution's bias."""
        norm, (n, _, h, w) = self.norm, x.shape
        if n * h * w > FEW_PIXELS:
            return functional.conv2d(self(x, shift), conv.weight, None, 1, 1)
        found = fused.patches(_last(x), norm.weight, norm.bias, shift, norm.num_groups, norm.eps, self.silu)
        flat = conv.weight.permute(0, 2, 3, 1).flatten(1)  # no copy if the weights are channels last
        return functional.linear(found, flat).view(n, h, w, -1).permute(0, 3, 1, 2)


class _Times(nn.Module):
    """Every projection of the time embedding, and the biases of the convolutions that they are added to, as one product."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.size = 0
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, projection: nn.Linear, bias: torch.Tensor) -> slice:
        """Add one projection; return its columns."""
        self._parts.append((projection.weight.detach(), projection.bias.detach().float() + bias.detach().float()))
        self.size += len(bias)
        return slice(self.size - len(bias), self.size)

    def finish(self) -> nn.Module:
        """Concatenate the projections."""
        if not self._parts:
            return nn.Identity()
        weights, biases = zip(*self._parts, strict=True)
        self.register_buffer("weight", torch.cat(weights), persistent=False)
        self.register_buffer("bias", torch.cat(biases).to(weights[0].dtype), persistent=False)
        self._parts = []
        return self

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.silu(embedding), self.weight, self.bias)


def _is_plain_resnet(part: Any) -> bool:
    return (
        (part.time_embedding_norm == "default" or part.time_emb_proj is None)
        and part.upsample is None
        and part.downsample is None
        and not part.skip_time_act
        and isinstance(part.nonlinearity, nn.SiLU)
        and isinstance(part.norm1, nn.GroupNorm)
        and isinstance(part.norm2, nn.GroupNorm)
        and all(conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride == (1, 1) for conv in (part.conv1, part.conv2))
    )


class _Resnet(nn.Module):
    """``ResnetBlock2D``: its biases are added at no cost."""

    def __init__(self, resnet: Any, times: _Times | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = _Norm(resnet.norm1, silu=True), _Norm(resnet.norm2, silu=True)
        self.conv1, self.conv2, self.conv_shortcut = resnet.conv1, resnet.conv2, resnet.conv_shortcut
        self.factor = 1 / resnet.output_scale_factor
        self.own = self.columns = None
        if resnet.time_emb_proj is not None and times is not None:
            self.columns = times.add(resnet.time_emb_proj, resnet.conv1.bias)
        elif resnet.time_emb_proj is not None:
            self.own = resnet.time_emb_proj

    def forward(self, x: torch.Tensor, temb: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        x = _last(x)
        shift = self.conv1.bias[None]
        if self.columns is not None and temb is not None:
            shift = temb[:, self.columns]
        elif self.own is not None and temb is not None:
            shift = self.own(functional.silu(temb)) + shift
        y = self.norm1.convolved(x, self.conv1)
        y = self.norm2.convolved(y, self.conv2, shift.expand(len(x), -1).contiguous())
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        found: torch.Tensor = x + (y + self.conv2.bias[:, None, None])
        return found if self.factor == 1 else found * self.factor


def _is_plain_transformer(part: Any) -> bool:
    blocks = part.transformer_blocks
    return (
        part.is_input_continuous and isinstance(part.norm, nn.GroupNorm) and all(b.norm_type == "layer_norm" for b in blocks)
        and all(b.pos_embed is None and b._chunk_size is None for b in blocks)
    )  # fmt: skip


class _Transformer(nn.Module):
    """``Transformer2DModel`` of a picture: (n, h, w, c) is (n, h w, c) without a copy."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.norm, self.transformer_blocks = _Norm(transformer.norm, silu=False), transformer.transformer_blocks
        self.proj_in, self.proj_out = _as_linear(transformer.proj_in), _as_linear(transformer.proj_out)

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **_: Any) -> tuple[torch.Tensor]:
        x = _last(hidden_states)
        n, c, h, w = x.shape
        y = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(n, h * w, c))
        for block in self.transformer_blocks:
            y = block(y, encoder_hidden_states=encoder_hidden_states)
        return (self.proj_out(y).view(n, h, w, c).permute(0, 3, 1, 2) + x,)


def _as_linear(projection: Any) -> nn.Linear:
    """A convolution of one pixel as a product."""
    if isinstance(projection, nn.Linear):
        return projection
    linear = nn.Linear(projection.in_channels, projection.out_channels, device="meta")
    linear.weight = nn.Parameter(projection.weight.detach().flatten(1).contiguous(), requires_grad=False)
    linear.bias = projection.bias
    return linear


def _is_plain_attention(part: Any) -> bool:
    return (
        part.group_norm is None
        and part.spatial_norm is None
        and part.norm_q is None
        and part.norm_k is None
        and part.to_q.bias is None
        and part.to_q.weight.shape == part.to_k.weight.shape
    )


class _SelfAttention:
    """Self-attention with one product for queries, keys and values."""

    def __init__(self, attention: Any) -> None:
        self.weight = torch.cat([part.weight.detach() for part in (attention.to_q, attention.to_k, attention.to_v)])

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Attend, (n, t, c) to (n, t, c)."""
        n, t, _c = hidden_states.shape
        q, k, v = functional.linear(hidden_states, self.weight).view(n, t, 3, attn.heads, -1).unbind(2)
        found = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=attn.scale)
        projected: torch.Tensor = attn.to_out[0](found.transpose(1, 2).reshape(n, t, -1))
        return projected


def rework_encoder(encoder: nn.Module) -> None:
    """Compute queries, keys and values in one product, in every attention of a CLIP image encoder; the encoder is changed."""
    from transformers.models.clip.modeling_clip import CLIPAttention

    for parent in list(encoder.modules()):
        for name, part in list(parent.named_children()):
            if type(part) is CLIPAttention:
                setattr(parent, name, _EncoderAttention(part))


class _EncoderAttention(nn.Module):
    """``CLIPAttention`` without a mask."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, attention: Any) -> None:
        super().__init__()
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.register_buffer("weight", torch.cat([part.weight.detach() for part in parts]), persistent=False)
        self.register_buffer("bias", torch.cat([part.bias.detach() for part in parts]), persistent=False)
        self.out_proj, self.heads, self.scale = attention.out_proj, attention.num_heads, attention.scale

    def forward(self, hidden_states: torch.Tensor, attention_mask: Any = None, **_: Any) -> tuple[torch.Tensor, None]:
        """Attend, (n, t, c) to (n, t, c)."""
        if attention_mask is not None:
            raise ValueError("image encoder: expected attention to the whole picture, got a mask")
        n, t, _c = hidden_states.shape
        q, k, v = functional.linear(hidden_states, self.weight, self.bias).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_proj(found.transpose(1, 2).reshape(n, t, -1)), None


class _WideHead:
    """Attention of a single head over a picture (n, c, h, w), with its norm and residual."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, temb: Any = None, **_: Any) -> torch.Tensor:
        """Attend, (n, c, h, w) to (n, c, h, w)."""
        x, norm = _last(hidden_states), attn.group_norm
        n, c, h, w = x.shape
        y = fused.group_norm(x, norm.weight, norm.bias, None, norm.num_groups, norm.eps, False)
        y = y.permute(0, 2, 3, 1).reshape(n, h * w, c)
        shares = torch.softmax(torch.bmm(attn.to_q(y) * attn.scale, attn.to_k(y).transpose(1, 2)), -1)
        found: torch.Tensor = attn.to_out[0](torch.bmm(shares, attn.to_v(y)))
        found = found.view(n, h, w, c).permute(0, 3, 1, 2)
        if attn.residual_connection:
            found = found + x
        return found / float(attn.rescale_output_factor)


def _is_plain_upsampling(part: Any) -> bool:
    conv = part.conv if part.name == "conv" else part.Conv2d_0
    return (
        part.use_conv and part.interpolate and not part.use_conv_transpose and part.norm is None
        and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride == (1, 1) and conv.bias is not None
    )  # fmt: skip


class _Upsample(nn.Module):
    """Upsampling by two and a convolution: four convolutions of two by two pixels, one for each place in a square of four."""

    def __init__(self, part: Any) -> None:
        super().__init__()
        conv = part.conv if part.name == "conv" else part.Conv2d_0
        weight = conv.weight.detach().double()
        first, second, third = weight.unbind(2)
        rows = [torch.stack(pair, 2) for pair in ((first, second + third), (first + second, third))]  # of even rows, of odd ones
        both = []
        for part_rows in rows:
            first, second, third = part_rows.unbind(3)
            both += [torch.stack(pair, 3) for pair in ((first, second + third), (first + second, third))]
        self.weight = nn.Parameter(torch.cat(both).to(conv.weight.dtype), requires_grad=False)
        self.bias = conv.bias

    def forward(self, x: torch.Tensor, output_size: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        if output_size is not None:
            raise ValueError(f"upsampling: expected twice the size, got {output_size}")
        found: torch.Tensor = fused.interleave(_last(functional.conv2d(_last(x), self.weight, None, 1, 1)), self.bias)
        return found
