"""Settings and requests are checked before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rtevo.errors import ConfigError
from rtevo.generate import GeneratorSettings, probe
from rtevo.generate.base import check_request


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        GeneratorSettings(
            steps=0, guidance_scale=0.5, noise_level=-1, threads=0, batch=True, device="cuda:x", scheduler="magic", backend="x"
        )
    assert len(caught.value.mistakes) == 8
    assert "[generator] steps: expected a whole number >= 1, got 0" in caught.value.mistakes


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:3"])
def test_devices_that_may_be_named(device: str) -> None:
    assert GeneratorSettings(device=device).device == device


@pytest.mark.parametrize(
    ("embeddings", "seeds", "match"),
    [
        (np.zeros(4), [0], r"embeddings: expected shape \(n, 4\)"),
        (np.zeros((2, 5)), [0, 1], r"got \(2, 5\)"),
        (np.full((1, 4), np.nan), [0], "expected finite numbers"),
        (np.zeros((2, 4)), [0], "seeds: expected 2 whole numbers"),
        (np.zeros((1, 4)), [0.5], "seeds: expected 1 whole numbers"),
        (np.zeros((1, 4)), [-1], "seeds: expected 1 whole numbers"),
    ],
)
def test_requests_that_do_not_fit_are_refused(embeddings: Any, seeds: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        check_request(embeddings, seeds, 4)


def test_seeds_of_64_bits_keep_every_bit() -> None:
    assert check_request(np.zeros((1, 2)), np.array([2**64 - 1], np.uint64), 2)[1] == [2**64 - 1]


def test_probing_the_built_in_model_needs_no_torch() -> None:
    assert probe() == (64, (64, 64))
    code = "import sys; from rtevo.generate import probe; probe(); sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
