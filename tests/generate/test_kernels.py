"""The Triton kernels, without a GPU: what they compute, in Triton's interpreter, and that they compile for the GPUs of today.

How kernels are run is decided when Triton is imported, so that the interpreter needs a process of its own: this file is its program too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton comes with torch for GPUs, and with rtevo[test]")

TOLERANCE = 3e-5
"""Against double precision, of numbers up to about 5."""

SHAPES = (((2, 320, 3, 5), 32), ((1, 2560, 1, 2), 32), ((1, 96, 7, 5), 32))


@pytest.mark.slow
def test_kernels_compute_what_they_should() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all as expected\n"


def group_norm(kernels: Any, shape: tuple[int, ...], groups: int, shifted: bool) -> None:
    """Against torch in double precision; the mean is 25 times the deviation: sums of squares would lose digits."""
    import torch
    from torch.nn import functional

    draw = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(shape, generator=draw) + 50).contiguous(memory_format=torch.channels_last)
    weight, bias, shift = (torch.randn(size, generator=draw) for size in (shape[1], shape[1], shape[:2]))
    whole = x.double() + (shift[:, :, None, None] if shifted else 0)
    wanted = functional.silu(functional.group_norm(whole, groups, weight.double(), bias.double(), 1e-5))
    given = (x, weight, bias, shift if shifted else None, groups, 1e-5, True)
    torch.testing.assert_close(kernels.group_norm(*given).double(), wanted, rtol=0, atol=TOLERANCE)
    conv = torch.randn((4, shape[1], 3, 3), generator=draw) / shape[1] ** 0.5
    flat = conv.permute(0, 2, 3, 1).flatten(1)
    found = functional.linear(kernels.group_norm(*given, patches=True), flat).transpose(1, 2).reshape(shape[0], 4, *shape[2:])
    torch.testing.assert_close(found.double(), functional.conv2d(wanted, conv.double(), None, 1, 1), rtol=0, atol=10 * TOLERANCE)


def many_parts(kernels: Any) -> None:
    """Moments of many parts are combined before the second pass."""
    import torch
    from torch.nn import functional

    kernels._PARTS = 2
    x = torch.randn((1, 32, 14, 13), generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    wanted = functional.group_norm(x.double(), 32, eps=1e-5)
    found = kernels.group_norm(x, torch.ones(32), torch.zeros(32), None, 32, 1e-5, False)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=TOLERANCE)


def interleaving(kernels: Any) -> None:
    """Against the same in torch."""
    import torch

    from rtevo.generate import fused

    x = torch.randn((2, 4 * 24, 6, 4), generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(kernels.interleave(x, torch.arange(24.0)), fused.interleave(x, torch.arange(24.0)))


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_kernels_compile_for_gpus_that_are_not_here(capability: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rtevo.generate import kernels

    types = dict.fromkeys(("x", "shift", "weight", "bias", "y"), "*fp16") | dict.fromkeys(("out", "moments"), "*fp32") | {"eps": "fp32"}
    group = {"STEP": 32, "WIDTH": 128, "USED": 120, "SIZE": 40, "COUNT": 4, "SHIFTED": True}
    wanted: list[tuple[Any, dict[str, Any]]] = [
        (kernels._moments, group | {"STAGES": 3}),
        (kernels._combine, {"SIZE": 40, "PARTS": 64}),
        (kernels._normalise, group | {"PARTS": 16, "SILU": True, "STAGES": 1, "PATCHES": True}),
        (kernels._normalise, group | {"PARTS": 16, "SILU": False, "STAGES": 3, "PATCHES": False}),
        (kernels._interleave, {"STEP": 32, "WIDTH": 128}),
    ]
    for kernel, constants in wanted:
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs={(names.index(name),): value for name, value in constants.items()})
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32), options=kernels._OPTIONS).asm["cubin"]


if __name__ == "__main__":
    from rtevo.generate import kernels as interpreted

    for case in SHAPES:
        for added in (False, True):
            group_norm(interpreted, *case, added)
    interleaving(interpreted)
    many_parts(interpreted)
    print("all as expected")
