"""Beats and phases against NeuroKit2, where it is installed (pip install 'rtevo[physio]')."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.physio.beats import find_beats
from rtevo.simulate.body import Body

nk = pytest.importorskip("neurokit2")
RATE_HZ = 100.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_beats_are_those_that_neurokit_finds(seed: int) -> None:
    rng, t = np.random.default_rng(seed), np.arange(0.0, 120.0, 1 / RATE_HZ)
    pulse = Body(rng, 120).pulse(t) + 0.05 * rng.standard_normal(len(t))
    ours = find_beats(pulse, RATE_HZ)
    theirs = nk.ppg_findpeaks(nk.ppg_clean(pulse, RATE_HZ), RATE_HZ)["PPG_Peaks"]
    apart = np.array([np.abs(theirs - beat).min() for beat in ours])
    assert len(ours) == pytest.approx(len(theirs), abs=2)
    assert np.mean(apart < 0.03 * RATE_HZ) > 0.98
