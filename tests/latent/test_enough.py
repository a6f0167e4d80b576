"""How many pictures and components are enough: told where the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtevo.latent.__main__ import main
from rtevo.latent.enough import enough

RANK, SIZE = 5, 30


def pictures(count: int, noise: float, seed: int = 0) -> np.ndarray:
    """Embeddings that differ along five directions, alike strong, and by noise."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(np.random.default_rng(99).standard_normal((SIZE, RANK)))[0]
    return rng.standard_normal((count, RANK)) @ directions.T + noise * rng.standard_normal((count, SIZE))


def test_components_above_chance_are_those_that_there_are_and_many_pictures_are_enough() -> None:
    found = enough(pictures(600, 0.1), 12, np.random.default_rng(0))
    assert found is not None
    assert found.above_chance == RANK
    assert found.most_of_it == RANK
    expected = (RANK * 1.01 + 7 * 0.01) / (RANK + SIZE * 0.01)  # five directions with their noise, and seven of noise alone
    assert found.unseen[-1] == pytest.approx(expected, abs=0.02)
    assert found.seen[-1] >= found.unseen[-1]
    assert "they are enough" in str(found)
    assert f"{RANK} nine tenths of that; {RANK} of them" in str(found)


def test_few_pictures_are_said_to_be_few() -> None:
    rng = np.random.default_rng(3)
    found = enough(rng.standard_normal((60, SIZE)) * np.linspace(2, 0.2, SIZE), 10, np.random.default_rng(0))
    assert found is not None
    assert found.half < found.unseen[-1] < found.seen[-1]
    assert "more would help" in str(found)
    assert enough(pictures(10, 0.1), 3, np.random.default_rng(0)) is None


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "embeddings.npy", pictures(200, 0.1).astype(np.float32))
    words = ["fit", str(tmp_path / "embeddings.npy"), "--components", "8", "--out", str(tmp_path / "space.npz"), "--no-figure"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "components: 8 reconstruct 9" in printed
    assert "pictures: with half of the 200" in printed
