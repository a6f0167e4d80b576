"""The simulated scanner: noise, motion and responses of what it measures, against what was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from rtevo.simulate import Simulation
from rtevo.simulate.head import motion_matrix
from rtevo.simulate.participant import Participant, haemodynamic_integral
from rtevo.simulate.scanner import BEHAVIOUR, Scanner, slice_times_s

SIGNAL_SHARE = 0.02  # of the response at one voxel: rounding to integers and the magnitude's bias
RECOVERED_MM = 0.1  # of rotation also, as the shift it causes 57 mm from the axis: a plain Gauss-Newton fit on a noisy volume
STILL = {"motion_mm": 0.0, "drift_percent": 0.0, "amplitude_percent": 0.0, "visual_percent": 0.0}


def unmoved(settings: Simulation) -> Participant:
    return Participant(settings.preference(), settings.rng(BEHAVIOUR), settings.amplitude_percent)


def series(settings: Simulation, n: int) -> tuple[Scanner, np.ndarray]:
    scanner, participant = Scanner(settings.head(), settings), unmoved(settings)
    return scanner, np.stack([scanner.acquire(k, participant) for k in range(n)])


@pytest.mark.parametrize("tsnr", [40.0, 90.0])
def test_grey_matter_has_the_temporal_signal_to_noise_ratio_asked_for(coarse: Simulation, tsnr: float) -> None:
    scanner, volumes = series(replace(coarse, tsnr=tsnr, **STILL), 120)
    grey = (scanner.head.grey > 0.6) & (scanner.head.signal > 800)
    found = volumes.mean(axis=0)[grey] / volumes.std(axis=0, ddof=1)[grey]
    assert np.median(found) == pytest.approx(tsnr, rel=0.08)


def test_noise_is_correlated_in_time_as_asked_for(coarse: Simulation) -> None:
    settings = replace(coarse, ar1=0.6, physiological=0.7, **STILL)
    scanner, volumes = series(settings, 200)
    grey = (scanner.head.grey > 0.6) & (scanner.head.signal > 800)
    noise = volumes[:, grey] - volumes[:, grey].mean(axis=0)
    lag1 = (noise[1:] * noise[:-1]).mean(axis=0) / (noise**2).mean(axis=0)
    assert lag1.mean() == pytest.approx(0.6 * 0.7, abs=0.05)


def test_drift_is_slow_and_of_the_size_asked_for(coarse: Simulation) -> None:
    settings = replace(coarse, tsnr=2000.0, **{**STILL, "drift_percent": 2.0})
    scanner, volumes = series(settings, 150)
    brain = volumes[:, scanner.head.signal > 600].astype(float)
    percent = 100 * (brain / brain[0] - 1)
    assert 0.3 < percent.std() < 8
    assert np.abs(np.diff(percent.mean(axis=1))).max() < 0.2


def gauss_newton(volume: np.ndarray, scanner: Scanner) -> np.ndarray:
    """Estimate the motion of a volume: linear steps on the six derivatives of the head at rest."""
    head, grid = scanner.head, scanner.head.grid
    params = np.zeros(6)

    def at(p: np.ndarray) -> np.ndarray:
        voxels = np.linalg.inv(grid.affine) @ np.linalg.inv(motion_matrix(p, grid)) @ grid.affine
        return ndimage.affine_transform(head.signal.astype(float), voxels[:3, :3], voxels[:3, 3], order=3)[3:-3, 3:-3, 3:-3].ravel()

    steps = np.array([0.05] * 3 + [0.001] * 3)
    for _ in range(3):
        here = at(params)
        slopes = np.stack([(at(params + step) - here) / step[i] for i, step in enumerate(np.diag(steps))], axis=1)
        params += np.linalg.lstsq(slopes, volume[3:-3, 3:-3, 3:-3].ravel() - here, rcond=None)[0]
    return params


def test_motion_of_the_volumes_is_the_one_on_record(coarse: Simulation) -> None:
    settings = replace(coarse, motion_mm=1.0, tsnr=150.0, drift_percent=0.0)
    scanner, volumes = series(settings, 40)
    for k in (0, 20, 39):
        true = scanner.params(k)
        assert np.abs(true).max() > 0.2
        error = gauss_newton(volumes[k].astype(float), scanner) - true
        assert np.abs(error * [1, 1, 1, 57, 57, 57]).max() < RECOVERED_MM


def test_response_follows_the_picture_slice_by_slice(coarse: Simulation) -> None:
    settings = replace(coarse, tsnr=3000.0, amplitude_percent=15.0, visual_percent=0.0, motion_mm=0.0, drift_percent=0.0)
    head = settings.head()
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    looking, blank = unmoved(settings), unmoved(settings)
    looking.look("image", 2.2, picture)
    looking.look("fixation", 5.2)
    with_picture, without = Scanner(head, settings), Scanner(head, settings)
    change = np.stack([with_picture.acquire(k, looking).astype(float) - without.acquire(k, blank) for k in range(20)])
    x, y, z = np.unravel_index(np.abs(head.gains).argmax(), head.gains.shape)
    times_s = np.arange(20) + slice_times_s(18, 1.0)[z]
    course = haemodynamic_integral(times_s - 2.2) - haemodynamic_integral(times_s - 5.2)
    amplitude = looking.viewings[0].amplitude_percent / 100 * head.signal[x, y, z] * head.gains[x, y, z]
    fine_s = np.arange(0, 20, 0.01)
    expected = amplitude * course / (haemodynamic_integral(fine_s) - haemodynamic_integral(fine_s - 3)).max()
    assert np.abs(expected).max() > 20
    np.testing.assert_allclose(change[:, x, y, z], expected, atol=1.5 + SIGNAL_SHARE * np.abs(expected).max())
    assert np.abs(change[:, head.gains == 0]).max() <= 1  # nothing anywhere else


def test_any_picture_drives_the_visual_cortex(coarse: Simulation) -> None:
    settings = replace(coarse, tsnr=3000.0, amplitude_percent=0.0, motion_mm=0.0, drift_percent=0.0)
    head, participant = settings.head(), unmoved(settings)
    participant.look("image", 0.0, np.zeros((4, 4, 3), np.uint8))
    participant.look("fixation", 3.0)
    scanner, other = Scanner(head, settings), Scanner(head, settings)
    change = [scanner.acquire(k, participant).astype(float) - other.acquire(k, unmoved(settings)) for k in range(8)][-1]
    where = head.visual > 0.8
    assert (100 * change[where] / head.signal[where]).mean() == pytest.approx(2.0 * head.visual[where].mean(), rel=0.15)


def test_slices_are_interleaved() -> None:
    np.testing.assert_allclose(slice_times_s(5, 1.0), [0.0, 0.6, 0.2, 0.8, 0.4])
    np.testing.assert_allclose(slice_times_s(4, 1.0), [0.5, 0.0, 0.75, 0.25])


def test_the_same_seeds_give_the_same_volumes_prepared_or_not(coarse: Simulation) -> None:
    _, volumes = series(coarse, 4)
    scanner, participant = Scanner(coarse.head(), coarse), unmoved(coarse)
    for k in range(4):
        scanner.prepare(k)
        np.testing.assert_array_equal(scanner.acquire(k, participant), volumes[k])
    assert volumes.dtype == np.int16
    _, another_run = series(replace(coarse, seed=2), 1)
    _, another_person = series(replace(coarse, participant_seed=2), 1)
    assert not np.array_equal(another_run[0], volumes[0])
    assert np.abs(another_run[0].astype(float) - volumes[0]).mean() < np.abs(another_person[0].astype(float) - volumes[0]).mean() / 2


def test_volumes_come_in_order(coarse: Simulation) -> None:
    scanner = Scanner(coarse.head(), coarse)
    scanner.prepare(0)
    with pytest.raises(ValueError, match="expected volume 1 next, got 2"):
        scanner.acquire(2, unmoved(coarse))


@pytest.mark.parametrize(
    ("name", "value"), [("tr_s", 0.0), ("tsnr", 0.5), ("ar1", 1.0), ("physiological", 1.5), ("seed", -1), ("motion_mm", float("nan"))]
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"simulation {name}: expected .* got {value}"):
        Simulation(**{name: value})
    with pytest.raises(ValueError, match="simulation shape"):
        Simulation(shape=(80, 80, 4))
