"""Realignment against known rigid motions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from rtevo.kernels.rigid import matrix_from_params
from rtevo.realign import Realigner, brain_mask, dvars, framewise_displacement, warm_up
from rtevo.simulate.head import Head, scan_grid

AFFINE = np.array([[-3.0, 0.1, 0.2, 40.0], [0.1, 2.9, -0.6, -35.0], [0.15, 0.6, 3.2, -20.0], [0, 0, 0, 1]])
SHAPE = (28, 30, 22)
NOISELESS_MM = 0.02  # what interpolation leaves
NOISY_MM = 0.06  # at tSNR 60 on this small phantom
FAR_MM = 0.06  # where much of the head left the field of view
DISTURBED_MM = 0.1  # blobs a third of this small head wide; least squares errs by 0.3 mm
SAME_MM = 0.003  # steps end below 0.001 mm


def _phantom(rng, shape=SHAPE):
    """Return a head-like volume: an ellipsoid with inner texture of about 3 voxels."""
    grid = [(np.arange(n) - (n - 1) / 2) / (0.36 * n) for n in shape]
    x, y, z = np.meshgrid(*grid, indexing="ij")
    head = 1 / (1 + np.exp(8 * (np.sqrt(x**2 + y**2 + z**2) - 1)))
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 1.4)
    return 1000 * head * (1 + 0.25 * texture / texture.std())


def _moved(volume, matrix, affine=AFFINE):
    back = np.linalg.inv(affine) @ np.linalg.inv(matrix) @ affine
    return ndimage.affine_transform(volume, back[:3, :3], back[:3, 3], order=5, mode="nearest")


def _centre(shape=SHAPE, affine=AFFINE):
    return affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]


def _error_mm(found, true, shape=SHAPE, affine=AFFINE):
    corners = np.array([[i, j, k] for i in (0.2, 0.8) for j in (0.2, 0.8) for k in (0.2, 0.8)]) * (np.array(shape) - 1)
    points = corners @ affine[:3, :3].T + affine[:3, 3]
    difference = found - true
    return np.linalg.norm(points @ difference[:3, :3].T + difference[:3, 3], axis=1).max()


@pytest.fixture(scope="module")
def phantom():
    return _phantom(np.random.default_rng(5))


@pytest.fixture
def realigner(phantom):
    with Realigner(phantom, AFFINE) as made:
        yield made


MOTIONS = [
    (0, 0, 0, 0, 0, 0),
    (0.1, -0.2, 0.15, 0.002, -0.001, 0.003),
    (1.5, -1.0, 1.2, 0.02, 0.026, -0.02),
    (-4, 3, 3.5, -0.06, 0.05, 0.07),
]


@pytest.mark.parametrize("params", MOTIONS)
def test_recovers_known_motion(phantom, realigner, params):
    true = matrix_from_params(params, _centre())
    motion = realigner.estimate(_moved(phantom, true))
    assert motion.converged
    assert _error_mm(motion.matrix, true) < NOISELESS_MM
    np.testing.assert_allclose(matrix_from_params(motion.params, realigner.centre), motion.matrix, atol=1e-9)


@pytest.mark.parametrize("params", MOTIONS[1:3])
@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.float32, np.float64, ">i2"])
def test_any_dtype_any_strides(phantom, realigner, params, kind):
    true = matrix_from_params(params, _centre())
    rng = np.random.default_rng(7)
    volume = np.rint(np.maximum(_moved(phantom, true) + rng.normal(scale=8, size=SHAPE), 0)).astype(kind)
    plain = realigner.align(volume)
    assert _error_mm(plain[0].matrix, true) < NOISY_MM
    strided = np.zeros((SHAPE[2], SHAPE[1] * 2, SHAPE[0]), kind).transpose(2, 1, 0)[::-1, ::2]
    strided[...] = volume
    with Realigner(phantom, AFFINE) as other:
        again = other.align(strided)
    np.testing.assert_array_equal(again[0].matrix, plain[0].matrix)
    np.testing.assert_array_equal(again[1], plain[1])


def test_reslice_brings_the_volume_back(phantom, realigner):
    true = matrix_from_params(MOTIONS[2], _centre())
    volume = _moved(phantom, true).astype(np.float32)
    motion, aligned = realigner.align(volume)
    np.testing.assert_array_equal(realigner.reslice(volume, motion), aligned)
    inner = (slice(4, -4),) * 3
    before, after = (np.abs(v - phantom)[inner].mean() for v in (volume, aligned))
    assert after < 0.1 * before


def test_only_wanted_voxels_are_resliced(phantom, realigner):
    wanted = np.zeros(SHAPE, bool)
    wanted[5:9, 6:20, 3:11] = True
    volume = _moved(phantom, matrix_from_params(MOTIONS[2], _centre()))
    with Realigner(phantom, AFFINE, wanted=wanted) as some:
        _, part = some.align(volume, np.full(SHAPE, np.nan, np.float32))
    _, whole = realigner.align(volume)
    np.testing.assert_allclose(part[wanted], whole[wanted], rtol=1e-5, atol=1e-2)
    assert not part[~wanted].any()
    with pytest.raises(ValueError, match="wanted"):
        Realigner(phantom, AFFINE, wanted=np.ones((2, 2, 2), bool))


def test_threads_change_no_bit(phantom):
    rng = np.random.default_rng(8)
    volumes = [_moved(phantom, matrix_from_params(p, _centre())) + rng.normal(scale=8, size=SHAPE) for p in MOTIONS]
    results = []
    for threads in (1, 2, 3):
        with Realigner(phantom, AFFINE, threads=threads) as realigner:
            results.append([realigner.align(v) for v in volumes])
    for other in results[1:]:
        for (motion, aligned), (motion_1, aligned_1) in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(motion.matrix, motion_1.matrix)
            np.testing.assert_array_equal(aligned, aligned_1)


within = st.floats(-1, 1)
motions = st.tuples(st.sampled_from([0.2, 2.0, 6.0]), st.tuples(*[within] * 6)).map(
    lambda m: np.array(m[1]) * m[0] * np.array([1, 1, 1, *[np.pi / 180] * 3])
)
few = settings(max_examples=12, deadline=None)


@given(motions)
@few
def test_recovers_any_motion(phantom, params):
    true = matrix_from_params(params, _centre())
    with Realigner(phantom, AFFINE) as realigner:
        motion = realigner.estimate(_moved(phantom, true))
    assert motion.converged
    assert _error_mm(motion.matrix, true) < (NOISELESS_MM if np.abs(params).max() < 2 else FAR_MM)


@given(motions, st.integers(0, 99))
@few
def test_there_and_back_is_nowhere(phantom, params, seed):
    rng = np.random.default_rng(seed)
    here = phantom + rng.normal(scale=8, size=SHAPE)
    there = _moved(phantom, matrix_from_params(params, _centre())) + rng.normal(scale=8, size=SHAPE)
    with Realigner(here, AFFINE) as one, Realigner(there, AFFINE) as other:
        round_trip = other.estimate(here).matrix @ one.estimate(there).matrix
    assert _error_mm(round_trip, np.eye(4)) < 2 * NOISY_MM


@given(motions, st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3))
@few
def test_voxel_order_does_not_matter(phantom, params, order, flips):
    """The same head in the world, stored along other axes."""
    volume = _moved(phantom, matrix_from_params(params, _centre()))
    swap = np.eye(4)[[*order, 3]].T  # stored voxel to voxel
    for axis, flip in enumerate(flips):
        if flip:
            swap[:3, 3] += swap[:3, axis] * (SHAPE[order[axis]] - 1)
            swap[:3, axis] *= -1
    step = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    stored, moved = (v.transpose(order)[step] for v in (phantom, volume))
    with Realigner(phantom, AFFINE) as one, Realigner(stored, AFFINE @ swap) as other:
        np.testing.assert_allclose(other.centre, one.centre)
        assert _error_mm(other.estimate(moved).matrix, one.estimate(volume).matrix) < SAME_MM


@given(motions, st.floats(1e-4, 1e4), st.floats(1e-4, 1e4))
@few
def test_intensity_scale_does_not_matter(phantom, params, scale, reference_scale):
    volume = _moved(phantom, matrix_from_params(params, _centre()))
    with Realigner(phantom, AFFINE) as one, Realigner(phantom * reference_scale, AFFINE) as other:
        plain, scaled = one.estimate(volume), other.estimate(volume * scale)
    assert _error_mm(plain.matrix, scaled.matrix) < SAME_MM
    assert scaled.scale == pytest.approx(scale / reference_scale, rel=0.05)


def test_start_does_not_matter(phantom):
    volume = _moved(phantom, matrix_from_params(MOTIONS[1], _centre())) + np.random.default_rng(3).normal(scale=8, size=SHAPE)
    found = []
    for before in ([], MOTIONS[:2], MOTIONS[2:3], MOTIONS[3:]):
        with Realigner(phantom, AFFINE) as realigner:
            for params in before:
                realigner.estimate(_moved(phantom, matrix_from_params(params, _centre())))
            found.append(realigner.estimate(volume).matrix)
    assert max(_error_mm(m, found[0]) for m in found) < SAME_MM


def _disturbed(phantom, true, rng, centre=(9, 18, 11), dark=(19, 11, 8)):
    """A 3 % activation in one blob, a 30 % dropout in another."""
    x = np.indices(SHAPE)
    blobs = [np.exp(-((x - np.reshape(c, (3, 1, 1, 1))) ** 2).sum(axis=0) / (2 * 4.0**2)) for c in (centre, dark)]
    changed = phantom * (1 + 0.03 * blobs[0]) * (1 - 0.3 * blobs[1])
    return _moved(changed, true) + rng.normal(scale=6, size=SHAPE)


@pytest.mark.parametrize("params", MOTIONS[:3])
def test_activation_and_dropout_are_not_taken_for_motion(phantom, params):
    rng = np.random.default_rng(11)
    true = matrix_from_params(params, _centre())
    with Realigner(phantom, AFFINE) as realigner:
        errors = [_error_mm(realigner.estimate(_disturbed(phantom, true, rng)).matrix, true) for _ in range(3)]
    assert np.mean(errors) < DISTURBED_MM


def test_recovers_from_a_jump(phantom):
    near, far = (matrix_from_params(p, _centre()) for p in (MOTIONS[1], (9, -7, 8, 0.2, -0.15, 0.25)))
    with Realigner(phantom, AFFINE) as realigner:
        for true in (near, far, near):
            motion = realigner.estimate(_moved(phantom, true))
            assert motion.converged
            assert _error_mm(motion.matrix, true) < FAR_MM


def test_some_voxels_without_a_number_are_left_out(phantom):
    true = matrix_from_params(MOTIONS[1], _centre())
    volume = _moved(phantom, true)
    volume[~brain_mask(phantom, AFFINE)] = np.nan
    volume[14, 15, 11] = np.inf
    with Realigner(np.where(np.isnan(volume), np.nan, phantom), AFFINE) as realigner:
        motion, aligned = realigner.align(volume)
    assert motion.converged
    assert _error_mm(motion.matrix, true) < 10 * NOISELESS_MM  # the outline is cut at another place
    assert np.isfinite(aligned).all()


def _bad(phantom):
    nan, half = phantom.copy(), phantom.copy()
    nan[:] = np.nan
    half[: SHAPE[0] // 2] = 0
    noise = np.random.default_rng(1).normal(1000, 50, SHAPE)
    return {"empty": np.zeros(SHAPE), "constant": np.full(SHAPE, 900.0), "nan": nan, "half black": half, "noise": noise}


@pytest.mark.parametrize("what", ["empty", "constant", "nan", "half black", "noise", "elsewhere"])
def test_flags_what_cannot_be_aligned_and_goes_on(phantom, what):
    true = matrix_from_params(MOTIONS[1], _centre())
    good = _moved(phantom, true)
    bad = _phantom(np.random.default_rng(99))[::-1] if what == "elsewhere" else _bad(phantom)[what]
    with Realigner(phantom, AFFINE) as realigner:
        realigner.estimate(good)
        motion, aligned = realigner.align(bad)
        assert not motion.converged
        assert motion.reason
        assert np.isnan(motion.params).all()
        np.testing.assert_array_equal(motion.matrix, np.eye(4))
        np.testing.assert_array_equal(aligned, bad.astype(np.float32))
        assert _error_mm(realigner.estimate(good).matrix, true) < NOISELESS_MM


def test_refuses_what_makes_no_sense(phantom):
    with pytest.raises(ValueError, match="at least 4 voxels"):
        Realigner(np.zeros((3, 30, 30)), AFFINE)
    with pytest.raises(ValueError, match="nothing to align to"):
        Realigner(np.zeros(SHAPE), AFFINE)
    with pytest.raises(ValueError, match="mask"):
        Realigner(phantom, AFFINE, mask=np.ones((2, 2, 2), bool))
    with pytest.raises(ValueError, match="affine"):
        Realigner(phantom, np.zeros((4, 4)))
    with pytest.raises(ValueError, match="expected shape"):
        Realigner(phantom, AFFINE).estimate(phantom[1:])


def test_framewise_displacement_by_its_definition():
    params = np.array([[0, 0, 0, 0, 0, 0], [1, -2, 0.5, 0.01, 0, -0.02], [np.nan] * 6, [0] * 6, [0, 0, 0, 0, 0.1, 0]])
    found = framewise_displacement(params)
    np.testing.assert_allclose(found, [np.nan, 1 + 2 + 0.5 + 50 * 0.03, np.nan, np.nan, 5.0])
    assert framewise_displacement(np.zeros((0, 6))).shape == (0,)


def test_dvars_by_its_definition():
    rng = np.random.default_rng(4)
    volumes, mask = rng.normal(size=(4, 5, 6, 7)), rng.random((4, 5, 6)) > 0.5
    expected = [np.sqrt(((volumes[mask][:, i] - volumes[mask][:, i - 1]) ** 2).mean()) for i in range(1, 7)]
    np.testing.assert_allclose(dvars(volumes, mask), [np.nan, *expected])
    with pytest.raises(ValueError, match="mask"):
        dvars(volumes, np.zeros((4, 5, 6), bool))


def test_warm_up_leaves_one_specialisation_per_kernel(phantom):
    from rtevo.kernels import align, interpolate, smooth

    warm_up()
    Realigner(phantom, AFFINE).align(phantom)
    kernels = [align.accumulate, align.advance, interpolate.prefilter_x, interpolate.prefilter_yz]
    kernels += [interpolate.reslice_rows, smooth._smooth_planes]
    assert {k.py_func.__name__: len(k.signatures) for k in kernels} == {k.py_func.__name__: 1 for k in kernels}


def test_a_reference_that_cannot_change_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session's realigner is ready at the first volume, as the one that warmed up had the same reference; results are the same bits."""
    rng = np.random.default_rng(0)
    grid = scan_grid((32, 32, 16), (6.0, 6.0, 8.0))
    reference, affine = Head.build(grid, rng).signal.copy(), grid.affine
    volume = (0.7 * reference + 0.3 * np.roll(reference, 1, 0) + rng.normal(0, 5, grid.shape)).astype(np.float32)
    with Realigner(reference, affine) as first:  # it may be written to
        expected = first.estimate(volume)
    reference.setflags(write=False)
    with Realigner(reference, affine) as second:
        second.estimate(reference)
    monkeypatch.setattr(Realigner, "_prepare", lambda *_: pytest.fail("prepared again"))
    with Realigner(reference, affine) as third:
        found = third.estimate(volume)
    assert found.converged
    np.testing.assert_array_equal(found.matrix, expected.matrix)
    monkeypatch.undo()
    with Realigner(reference, 2 * affine) as other:
        assert other.grid.voxel_size_mm[0] == 12.0
