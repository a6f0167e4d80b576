"""What a preflight would have learnt before the check that is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.config import build
from rtevo.decode import write_decoder
from rtevo.preflight.findings import Check, Finding, Known
from rtevo.records import Grid

SHAPE = (16, 15, 12)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def head(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A smooth blob that can be realigned."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = sum(a**2 for a in axes)
    return (1000 * np.exp(-3 * radius) * (1 + 0.4 * np.sin(5 * axes[0]) * np.cos(4 * axes[1] + axes[2]))).astype(np.float32)


@pytest.fixture
def decoder_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a decoder on a grid: ``decoder_folder(affine=AFFINE, noise=True)``."""

    def write(affine: np.ndarray = AFFINE, noise: bool = True, **settings: Any) -> Path:
        reference = head()
        mask = reference > 200
        weights = np.random.default_rng(0).standard_normal(SHAPE)
        folder = tmp_path / "decoder"
        write_decoder(folder, "map", reference, mask, weights, affine, settings, np.ones(SHAPE) if noise else None)
        return folder

    return write


@pytest.fixture
def known() -> Callable[..., Known]:
    """Return a function that gives what is known: ``known({"acquisition": {...}}, tr_s=2.0)``."""

    def make(tables: dict[str, Any] | None = None, **facts: Any) -> Known:
        usual: dict[str, Any] = {"tr_s": 2.0, "grid": Grid(SHAPE, AFFINE), "embedding_size": 64, "image_size": (64, 64)}
        return Known(build(tables or {}), **{**usual, **facts})

    return make


def verdicts(findings: list[Finding]) -> dict[str, str]:
    """Verdict of each check; whatever does not pass says what to do."""
    assert all(bool(each.to_do) == (each.verdict != "pass") for each in findings), findings
    return {each.check: each.verdict for each in findings}


def run(check: Check, known: Known) -> list[Finding]:
    return list(check.run(known))
