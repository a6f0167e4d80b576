"""Triton kernels for channels-last tensors, for speed that compilers and libraries leave unused in the image networks.

Imported only with a GPU (:mod:`rtevo.generate.fused` has the same functions in torch), or by tests, in Triton's interpreter.
Nothing here uses atomics: the same input gives the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["group_norm", "interleave"]

# Measured on an H200 over the shapes of Stable unCLIP's networks:
_TILE, _WARPS = 4096, 4  # numbers that a program holds
_OPTIONS = {"enable_fp_fusion": True}  # Triton 3.9 warns about the default, which changes with 3.10
_PROGRAMS = 264  # most programs of the first pass; one for each row of a small picture
_PARTS = 64  # partial moments that every program of the second pass reads; more are combined first
_MANY_ROWS = 1 << 16  # from this size on loads are fetched ahead


@triton.jit
def _moments(x, shift, out, rows, channels, parts, per_part, STEP: tl.constexpr, WIDTH: tl.constexpr, USED: tl.constexpr,
             SIZE: tl.constexpr, COUNT: tl.constexpr, SHIFTED: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Mean and sum of squared deviations of a part of the rows, for each group of a block of channels.

    Deviations are from the part's first row, and sums are combined as Chan, Golub & LeVeque (1983, doi:10.1080/00031305.1983.10483115)
    do: no sum of squares loses its digits to a large mean.
    """
    part, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lane = tl.arange(0, WIDTH)
    channel = block * USED + lane
    there = (lane < USED) & (channel < channels)
    first = part * per_part
    last = tl.minimum(first + per_part, rows)
    base = x + image.to(tl.int64) * rows * channels + channel
    pivot = tl.load(base + first * channels, mask=there, other=0).to(tl.float32)
    once, twice = tl.zeros([STEP, WIDTH], tl.float32), tl.zeros([STEP, WIDTH], tl.float32)
    for start in tl.range(first, last, STEP, num_stages=STAGES):
        row = start + tl.arange(0, STEP)
        known = (row < last)[:, None] & there[None, :]
        value = tl.load(base[None, :] + row[:, None] * channels, mask=known, other=0).to(tl.float32)
        value = tl.where(known, value - pivot[None, :], 0.0)
        once += value
        twice += value * value
    count = (last - first).to(tl.float32)
    sums = tl.sum(once, 0)
    mean, apart = pivot + sums / count, tl.sum(twice, 0) - sums * sums / count
    if SHIFTED:
        mean += tl.load(shift + image * channels + channel, mask=there, other=0).to(tl.float32)
    group = tl.arange(0, COUNT)
    inside = ((lane // SIZE)[None, :] == group[:, None]) & there[None, :]
    group_mean = tl.sum(tl.where(inside, mean[None, :], 0.0), 1) / SIZE
    away = tl.where(inside, mean[None, :] - group_mean[:, None], 0.0)
    group_apart = tl.sum(tl.where(inside, apart[None, :], 0.0), 1) + count * tl.sum(away * away, 1)
    number = block * (USED // SIZE) + group
    keep = (group < USED // SIZE) & (number * SIZE < channels)
    place = (image * (channels // SIZE) + number) * 2 * parts + part
    tl.store(out + place, group_mean, mask=keep)
    tl.store(out + place + parts, group_apart, mask=keep)


@triton.jit
def _combine(moments, out, rows, parts, per_part, SIZE: tl.constexpr, PARTS: tl.constexpr):
    """Combine the moments of parts to those of the whole, one group a program."""
    group = tl.program_id(0)
    part = tl.arange(0, PARTS)
    there = part < parts
    place = group * 2 * parts + part
    mean = tl.load(moments + place, mask=there, other=0)
    apart = tl.load(moments + place + parts, mask=there, other=0)
    count = tl.where(there, tl.minimum(per_part, rows - part * per_part), 0).to(tl.float32)
    whole = tl.sum(count * mean, 0) / rows
    away = tl.where(there, mean - whole, 0.0)
    tl.store(out + group * 2, whole)
    tl.store(out + group * 2 + 1, tl.sum(apart, 0) + SIZE * tl.sum(count * away * away, 0))


@triton.jit
def _normalise(x, shift, moments, weight, bias, y, rows, channels, parts, per_part, per_program, eps, STEP: tl.constexpr,
               WIDTH: tl.constexpr, USED: tl.constexpr, SIZE: tl.constexpr, COUNT: tl.constexpr, PARTS: tl.constexpr,
               SHIFTED: tl.constexpr, SILU: tl.constexpr, STAGES: tl.constexpr, PATCHES: tl.constexpr, columns):  # fmt: skip
    """The second pass: combine the moments, normalise some of the rows of a block of channels.

    With PATCHES each number is written to the nine places where a convolution of three by three pixels needs it: `y` has nine blocks of
    channels a pixel. Beyond the border the value is 0: each pixel fills the places for which it has no neighbour.
    """
    program, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    lane = tl.arange(0, WIDTH)
    channel = block * USED + lane
    there = (lane < USED) & (channel < channels)
    group, part = tl.arange(0, COUNT), tl.arange(0, PARTS)
    number = block * (USED // SIZE) + group
    keep = ((group < USED // SIZE) & (number * SIZE < channels))[:, None] & (part < parts)[None, :]
    place = (image * (channels // SIZE) + number)[:, None] * 2 * parts + part[None, :]
    part_mean = tl.load(moments + place, mask=keep, other=0)
    part_apart = tl.load(moments + place + parts, mask=keep, other=0)
    count = tl.where(part < parts, tl.minimum(per_part, rows - part * per_part), 0).to(tl.float32)
    group_mean = tl.sum(count[None, :] * part_mean, 1) / rows
    away = tl.where(keep, part_mean - group_mean[:, None], 0.0)
    variance = (tl.sum(part_apart, 1) + SIZE * tl.sum(count[None, :] * away * away, 1)) / (rows * SIZE)
    group_scale = 1 / tl.sqrt(variance + eps)
    inside = ((lane // SIZE)[None, :] == group[:, None]) & there[None, :]
    mean = tl.sum(tl.where(inside, group_mean[:, None], 0.0), 0)
    scale = tl.sum(tl.where(inside, group_scale[:, None], 0.0), 0) * tl.load(weight + channel, mask=there, other=0).to(tl.float32)
    if SHIFTED:
        mean -= tl.load(shift + image * channels + channel, mask=there, other=0).to(tl.float32)
    offset = tl.load(bias + channel, mask=there, other=0).to(tl.float32) - mean * scale
    base = image.to(tl.int64) * rows * channels
    first = program * per_program
    last = tl.minimum(first + per_program, rows)
    for start in tl.range(first, last, STEP, num_stages=STAGES):
        row = start + tl.arange(0, STEP)
        known = (row < last)[:, None] & there[None, :]
        at = base + row[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask=known, other=0).to(tl.float32) * scale[None, :] + offset[None, :]
        if SILU:
            value = value / (1 + tl.exp(-value))
        found = value.to(y.dtype.element_ty)
        if PATCHES:
            high, wide = row // columns, row % columns
            for tap in tl.static_range(9):
                down, right = tap // 3 - 1, tap % 3 - 1
                beside = (high + down >= 0) & (high + down < rows // columns) & (wide + right >= 0) & (wide + right < columns)
                spot = tl.where(beside, (row + down * columns + right) * 9 + 8 - tap, row * 9 + tap)
                tl.store(y + base * 9 + spot[:, None] * channels + channel[None, :], tl.where(beside[:, None], found, 0.0), mask=known)
        else:
            tl.store(y + at, found, mask=known)


def _block(channels: int, size: int) -> tuple[int, int]:
    """Lanes of a block of channels, and how many of them it uses: whole groups, and a multiple of eight where that can be."""
    found = []
    for lanes in (64, 128, 256, triton.next_power_of_2(max(size, 16))):
        counts = [k for k in range(1, lanes // size + 1) if (k * size) % 8 == 0] or ([lanes // size] if lanes >= size else [])
        if counts:
            used = max(counts) * size
            found.append((triton.cdiv(channels, used) * lanes, lanes != 128, lanes, used))
    return min(found)[2:]


def group_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    shift: torch.Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
    patches: bool = False,
) -> torch.Tensor:
    """See :func:`rtevo.generate.fused.group_norm`, and :func:`rtevo.generate.fused.patches`."""
    x = x.contiguous(memory_format=torch.channels_last)  # no copy, unless a compiler has changed the layout
    images, channels, height, width = x.shape
    rows, size = height * width, channels // groups
    lanes, used = _block(channels, size)
    blocks = triton.cdiv(channels, used)
    work = rows * blocks * images
    step, warps = _TILE // lanes, _WARPS
    programs = _PROGRAMS if rows >= 1024 else 2 * _PROGRAMS
    while work < step * programs and step * lanes > 1024:
        step, warps = step // 2, max(2, warps // 2)
    per_part = step * max(1, triton.cdiv(work, programs * step))
    parts = triton.cdiv(rows, per_part)
    stages = 3 if rows >= _MANY_ROWS else 1
    shape = {"STEP": step, "WIDTH": lanes, "USED": used, "SIZE": size, "COUNT": triton.next_power_of_2(used // size), "STAGES": stages}
    moments = torch.empty((images * groups, 2, parts), dtype=torch.float32, device=x.device)
    shifts = x if shift is None else shift
    _moments[(parts, blocks, images)](
        x, shifts, moments, rows, channels, parts, per_part, **shape, SHIFTED=shift is not None, num_warps=warps, **_OPTIONS
    )
    if parts > _PARTS:
        whole = torch.empty((images * groups, 2, 1), dtype=torch.float32, device=x.device)
        _combine[(images * groups,)](moments, whole, rows, parts, per_part, SIZE=size, PARTS=triton.next_power_of_2(parts), **_OPTIONS)
        moments, parts, per_part = whole, 1, rows
    y = x.new_empty((images, rows, 9 * channels)) if patches else torch.empty_like(x)
    per_program = step * max(1, triton.cdiv(work, 2 * programs * step))
    _normalise[(triton.cdiv(rows, per_program), blocks, images)](
        x, shifts, moments, weight, bias, y, rows, channels, parts, per_part, per_program, eps,
        **shape, PARTS=triton.next_power_of_2(parts), SHIFTED=shift is not None, SILU=silu, PATCHES=patches, columns=width,
        num_warps=warps, **_OPTIONS,
    )  # fmt: skip
    return y


@triton.jit
def _interleave(x, bias, y, height, width, channels, pixels, STEP: tl.constexpr, WIDTH: tl.constexpr):
    """Interleave the four pictures of a convolution with built-in upsampling into one of twice the size."""
    image = tl.program_id(2)
    pixel = tl.program_id(0) * STEP + tl.arange(0, STEP)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    row, column = pixel // (2 * width), pixel % (2 * width)
    down, right = row % 2, column % 2
    source = ((row // 2 + down) * (width + 1) + column // 2 + right) * (4 * channels) + (2 * down + right) * channels
    known = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    start = image.to(tl.int64) * (height + 1) * (width + 1) * 4 * channels
    value = tl.load(x + start + source[:, None] + channel[None, :], mask=known, other=0).to(tl.float32)
    value += tl.load(bias + channel, mask=channel < channels, other=0).to(tl.float32)[None, :]
    out = y + image.to(tl.int64) * pixels * channels + pixel[:, None] * channels + channel[None, :]
    tl.store(out, value.to(y.dtype.element_ty), mask=known)


def interleave(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """See :func:`rtevo.generate.fused.interleave`."""
    x = x.contiguous(memory_format=torch.channels_last)
    images, four, tall, wide = x.shape
    channels, height, width = four // 4, tall - 1, wide - 1
    y = torch.empty((images, 2 * height, 2 * width, channels), dtype=x.dtype, device=x.device)
    lanes = min(256, triton.next_power_of_2(channels))
    step = max(1, 4096 // lanes)
    grid = (triton.cdiv(4 * height * width, step), triton.cdiv(channels, lanes), images)
    _interleave[grid](x, bias, y, height, width, channels, 4 * height * width, STEP=step, WIDTH=lanes, num_warps=4, **_OPTIONS)
    return y.permute(0, 3, 1, 2)
