"""STUB."""
from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Verdict(StrEnum):
    GOOD = "good"
    DOUBTFUL = "doubtful"
    BAD = "bad"

@dataclass(frozen=True, eq=False)
class Placement:
    matrix: np.ndarray
    correlation: float
    overlap: float
    weight_kept: float
    expected_error_mm: float
    verdict: Verdict
    reasons: tuple[str, ...] = ()

def place(reference, grid, today, today_grid, *, weight=None, starts=()):
    return Placement(np.eye(4), 1.0, 1.0, 1.0, 0.05, Verdict.GOOD)

def judge(matrix, reference, grid, today, today_grid, *, weight=None):
    return Placement(np.asarray(matrix), 1.0, 1.0, 1.0, 0.05, Verdict.GOOD)

def draw_placement(path, *a, **k):
    path.write_bytes(b"")

def warm_up():
    pass
