"""Operations of the image networks as one step each: kernels of :mod:`rtevo.generate.kernels` on a GPU, torch's own operations elsewhere.

The compiler sees each as one opaque operation whose result is channels last, so it has no reason to transpose tensors.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["group_norm", "interleave", "patches"]


@torch.library.custom_op(
    "rtevo::group_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor? shift, int groups, float eps, bool silu) -> Tensor",
)
def group_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shift: torch.Tensor | None, groups: int, eps: float, silu: bool
) -> torch.Tensor:
    """Add a number for each channel, normalise by groups of channels, and activate.

    Parameters
    ----------
    x : tensor (n, c, h, w)
        Channels last.
    weight, bias : tensor (c,)
    shift : tensor (n, c), optional
        Added first: a convolution's bias, and the projection of the time embedding.
    groups : int
    eps : float
    silu : bool
        Whether x sigmoid(x) follows.

    Returns
    -------
    tensor (n, c, h, w)
        Channels last.
    """
    if x.is_cuda:
        from rtevo.generate import kernels

        return kernels.group_norm(x, weight, bias, shift, groups, eps, silu)
    y = functional.group_norm(x if shift is None else x + shift[:, :, None, None], groups, weight, bias, eps)
    return (functional.silu(y) if silu else y).contiguous(memory_format=torch.channels_last)


@group_norm.register_fake
def _(x: torch.Tensor, weight: object, bias: object, shift: object, groups: int, eps: float, silu: bool) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op(
    "rtevo::patches",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor? shift, int groups, float eps, bool silu) -> Tensor",
)
def patches(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shift: torch.Tensor | None, groups: int, eps: float, silu: bool
) -> torch.Tensor:
    """As :func:`group_norm`, laid out for a convolution of three by three pixels, which is then one matrix product.

    Parameters
    ----------
    x, weight, bias, shift, groups, eps, silu
        As for :func:`group_norm`.

    Returns
    -------
    tensor (n, h w, 9 c)
        For each pixel all its neighbours, row by row, and itself; zeros beyond the border.
    """
    if x.is_cuda:
        from rtevo.generate import kernels

        return kernels.group_norm(x, weight, bias, shift, groups, eps, silu, patches=True)
    y = group_norm(x, weight, bias, shift, groups, eps, silu)
    found = functional.unfold(y, 3, padding=1).view(len(x), x.shape[1], 9, -1)
    return found.permute(0, 3, 2, 1).reshape(len(x), -1, 9 * x.shape[1])


@patches.register_fake
def _(x: torch.Tensor, weight: object, bias: object, shift: object, groups: int, eps: float, silu: bool) -> torch.Tensor:
    return x.new_empty((len(x), x.shape[2] * x.shape[3], 9 * x.shape[1]))


@torch.library.custom_op("rtevo::interleave", mutates_args=(), schema="(Tensor x, Tensor bias) -> Tensor")
def interleave(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Interleave the pixels of four pictures into one of twice the size.

    Parameters
    ----------
    x : tensor (n, 4 c, h + 1, w + 1)
        Channels last; the four are of even rows and columns, even rows and odd columns, odd and even, odd and odd, of which the even
        ones leave out the last row (column) and the odd ones the first.
    bias : tensor (c,)
        Added.

    Returns
    -------
    tensor (n, c, 2 h, 2 w)
        Channels last.
    """
    if x.is_cuda:
        from rtevo.generate import kernels

        return kernels.interleave(x, bias)
    channels, height, width = len(bias), x.shape[2] - 1, x.shape[3] - 1
    y = x.new_empty((len(x), channels, 2 * height, 2 * width)).contiguous(memory_format=torch.channels_last)
    for part in range(4):
        down, right = divmod(part, 2)
        own = x[:, part * channels : (part + 1) * channels, down : down + height, right : right + width]
        y[:, :, down::2, right::2] = own + bias[:, None, None]
    return y


@interleave.register_fake
def _(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    y = x.new_empty((len(x), len(bias), 2 * (x.shape[2] - 1), 2 * (x.shape[3] - 1)))
    return torch.empty_like(y, memory_format=torch.channels_last)
