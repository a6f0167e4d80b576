"""The response's shape against SPM's kernel, written out and convolved by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rtevo.decode.hrf import HRF_LENGTH_S, response

QUADRATURE = 2e-4  # of a sum with 1 ms steps


def spm(t: np.ndarray) -> np.ndarray:
    """SPM's spm_hrf with its default parameters, not normalised."""
    kernel = stats.gamma.pdf(t, 6) - stats.gamma.pdf(t, 16) / 6
    return np.where((t >= 0) & (t < HRF_LENGTH_S), kernel, 0)


@pytest.mark.parametrize("duration_s", [0.5, 3.0, 16.0])
def test_is_the_kernel_convolved_with_a_boxcar(duration_s: float) -> None:
    step = 0.001
    times = np.arange(-2, 60, 0.25)
    shown = np.arange(step / 2, duration_s, step)
    expected = np.array([spm(t - shown).sum() * step for t in times])
    fine = [spm(t - shown).sum() * step for t in np.arange(2, 25, 0.05)]
    np.testing.assert_allclose(response(times, duration_s), expected / max(fine), atol=QUADRATURE)


def test_peaks_at_one_after_about_six_seconds_and_undershoots() -> None:
    times = np.arange(0, 40, 0.01)
    shape = response(times, 3.0)
    assert shape.max() == pytest.approx(1, abs=1e-6)
    assert 6 < times[shape.argmax()] < 7
    assert -0.2 < shape.min() < -0.05
    assert not response([-1.0, 0.0, 35.0, 50.0], 3.0).any()


@pytest.mark.parametrize("duration_s", [0.0, -1.0, np.nan, np.inf])
def test_duration_is_checked(duration_s: float) -> None:
    with pytest.raises(ValueError, match="duration_s: expected a finite number > 0"):
        response(1.0, duration_s)
