"""Carried decoders: the same scores on another grid, exactly the same arrays where the voxels are the same, and no zeros that count."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from rtevo.decode import Decoder, Scorer
from rtevo.decode.carry import Order, carry, reorder, same_voxels
from rtevo.decode.hrf import response
from rtevo.decode.sampling import collect, sample
from rtevo.decode.separate import Projection
from rtevo.errors import DecoderError, GeometryError
from rtevo.kernels.rigid import matrix_from_params
from rtevo.kernels.smooth import smooth
from rtevo.place import Placement, Verdict
from rtevo.records import Grid

CONSTANT = 1e-4  # relative: cubic splines in float32, with the collection's finite reach
FUNCTIONAL = 0.01  # of the sums' spread, rms: what voxels of 4 mm do not see of waves of 6 mm
SCORES = 0.98  # correlation of scores, as the project asks for
TR_S = 1.0
DATA = Path(os.environ.get("RTEVO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "field" / "ras_decoder"


def turned(shape: tuple[int, int, int], size_mm: tuple[float, float, float], degrees: tuple[float, ...], axes: tuple[int, ...]) -> Grid:
    """Return a grid about the world's origin, turned, with its axes in another order, the first of them reversed."""
    affine = np.eye(4)
    affine[:3, :3] = matrix_from_params([0, 0, 0, *np.deg2rad(degrees)])[:3, :3][:, list(axes)] @ np.diag(size_mm) @ np.diag([-1, 1, 1])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


HOME = turned((30, 32, 22), (3.0, 3.0, 3.3), (14, 2, -2), (0, 1, 2))
MOVED = matrix_from_params([8.0, -5.0, 4.0, 0.12, -0.2, 0.3])  # the head, from the decoder's day to today
TODAY = {
    "larger": turned((28, 30, 24), (4.0, 4.0, 4.0), (-20, 10, 15), (0, 1, 2)),
    "smaller, coronal": turned((60, 46, 64), (1.8, 2.0, 1.8), (5, 40, -10), (0, 2, 1)),
    "sagittal": turned((44, 42, 40), (2.4, 2.4, 2.4), (0, 12, 45), (1, 2, 0)),
    "thick slices": turned((50, 52, 30), (2.0, 2.0, 4.0), (10, -5, 20), (0, 1, 2)),
}


def placed(matrix: np.ndarray = MOVED) -> Placement:
    return Placement(matrix, 0.97, 0.95, 0.99, 0.08, Verdict.GOOD, ())


def points(grid: Grid, matrix: np.ndarray) -> np.ndarray:
    """Points of the decoder's world that a grid's voxels show, where the head has moved by `matrix`, (3, X, Y, Z)."""
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")).reshape(3, -1)
    back = np.linalg.inv(matrix) @ grid.affine
    return (back[:3, :3] @ voxels + back[:3, 3:]).reshape(3, *grid.shape)


Field = Callable[[np.ndarray], np.ndarray]


def waves(rng: np.random.Generator, size_mm: float, terms: int = 24) -> Field:
    """Return a smooth random function of the world, with a Gaussian correlation of standard deviation `size_mm`: known at every point."""
    rates, phases = rng.standard_normal((terms, 3)) / size_mm, rng.uniform(0, 2 * np.pi, terms)

    def at(p: np.ndarray) -> np.ndarray:
        angle = np.tensordot(rates, p, axes=1) + phases[:, None, None, None]
        return np.cos(angle).sum(axis=0) * np.sqrt(2 / terms)

    return at


def ball(p: np.ndarray, radius_mm: float) -> np.ndarray:
    return 1 / (1 + np.exp((np.sqrt((p**2).sum(axis=0)) - radius_mm) / 1.5))


def make_decoder(seed: int = 0, detail_mm: float = 6.0) -> tuple[Decoder, Field]:
    """Return a decoder at home, and its map as a function of the world."""
    rng = np.random.default_rng(seed)
    weight, uneven, p = waves(rng, detail_mm), waves(rng, 20.0), points(HOME, np.eye(4))
    noise = 10.0 * (1.2 + 0.2 * uneven(p).clip(-3, 3))
    decoder = Decoder(HOME, 1000 * ball(p, 36), ball(p, 26) > 0.5, weight(p), "map", {"fwhm_mm": 4.0, "tr_s": TR_S}, noise)
    return decoder, weight


def reference(grid: Grid, gain: float = 1.0) -> np.ndarray:
    return gain * 1000 * ball(points(grid, MOVED), 36)


def functional(decoder: Decoder) -> np.ndarray:
    """Return weights / noise_sd, 0 where nothing counts."""
    assert decoder.noise_sd is not None
    return np.divide(decoder.weights, decoder.noise_sd, out=np.zeros(decoder.grid.shape), where=decoder.noise_sd > 0)


def test_on_its_own_grid_a_decoder_is_itself() -> None:
    decoder, _ = make_decoder()
    assert carry(decoder, placed(), reference(HOME), HOME) is decoder
    almost = Grid(HOME.shape, HOME.affine + np.pad(np.full((3, 1), 0.05), ((0, 1), (3, 0))))  # mm: Grid.difference finds none
    assert carry(decoder, placed(), reference(HOME), almost) is decoder


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(False, False, False), (True, False, False), (False, True, True)])
def test_voxels_in_another_order_are_reordered_exactly(axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> None:
    decoder, _ = make_decoder()
    order = Order(axes, flips)
    other = order.grid(HOME)
    assert same_voxels(HOME, other) == order
    back = same_voxels(other, HOME)
    assert back is not None
    found = carry(decoder, placed(), np.zeros(other.shape), other)
    assert found.grid.difference(other) == ""
    for name in ("reference", "mask", "weights", "noise_sd"):
        np.testing.assert_array_equal(back(getattr(found, name)), getattr(decoder, name))
    voxel = (3, 5, 7)
    world = other.affine @ [*voxel, 1]
    home = np.rint(np.linalg.solve(HOME.affine, world)[:3]).astype(int)
    assert found.reference[voxel] == decoder.reference[tuple(home)]


@pytest.mark.parametrize("name", TODAY)
def test_other_voxels_are_not_the_same_ones(name: str) -> None:
    assert same_voxels(HOME, TODAY[name]) is None
    assert reorder(make_decoder()[0], TODAY[name]) is None
    shifted = HOME.affine.copy()
    shifted[0, 3] += 0.5  # mm
    assert same_voxels(HOME, Grid(HOME.shape, shifted)) is None


def test_a_decoder_in_ras_order_for_a_run_in_las_order() -> None:
    if not DATA.is_dir():
        pytest.skip(f"no {DATA}")
    decoder, run = Decoder.load(DATA), nib.load(DATA / "run_LAS_3vols.nii.gz")
    found = reorder(decoder, Grid(run.shape[:3], run.affine))
    assert found is not None
    np.testing.assert_array_equal(found.weights, decoder.weights[::-1])
    np.testing.assert_array_equal(found.mask, decoder.mask[::-1])
    assert found.settings == decoder.settings


@pytest.mark.parametrize("name", TODAY)
def test_a_constant_map_keeps_its_value(name: str) -> None:
    decoder, _ = make_decoder()
    even = np.full(HOME.shape, 2.0)
    even[15, 16, 11] *= 1 + 1e-6  # a map must vary
    assert decoder.noise_sd is not None
    decoder = replace(decoder, weights=even, noise_sd=np.where(decoder.mask, 12.0, 0))
    found = carry(decoder, placed(), reference(TODAY[name], gain=3.0), TODAY[name])
    np.testing.assert_allclose(found.weights[found.mask], 2.0, rtol=CONSTANT)
    assert found.noise_sd is not None
    np.testing.assert_allclose(found.noise_sd[found.mask], 36.0, rtol=0.02)  # the references' gain, as far as their edges differ
    volume_mm3 = [mask.sum() * np.prod(grid.voxel_size_mm) for mask, grid in ((found.mask, found.grid), (decoder.mask, HOME))]
    assert volume_mm3[0] == pytest.approx(volume_mm3[1], rel=0.02)  # of a ball, counted in voxels


@pytest.mark.parametrize("name", TODAY)
def test_the_sum_over_todays_voxels_is_the_decoders(name: str) -> None:
    decoder, _ = make_decoder()
    fading = decoder.weights * ball(points(HOME, np.eye(4)), 20)  # without the mask's edge, which either grid counts in whole voxels
    decoder = replace(decoder, weights=fading)
    found = carry(decoder, placed(), reference(TODAY[name]), TODAY[name])
    sums = []
    for seed in range(100, 110):
        volume = waves(np.random.default_rng(seed), 6.0, 12)
        row = []
        for one, matrix in ((decoder, np.eye(4)), (found, MOVED)):
            density = functional(one) * np.prod(one.grid.voxel_size_mm)
            row.append((density * volume(points(one.grid, matrix))).sum())
        sums.append(row)
    home, today = np.array(sums).T
    assert np.sqrt(((today - home) ** 2).mean()) < FUNCTIONAL * home.std()


def test_the_noise_estimate_does_not_change_the_functional() -> None:
    decoder, _ = make_decoder()
    grid, rng = TODAY["sagittal"], np.random.default_rng(0)
    today = reference(grid)
    prior = carry(decoder, placed(), today, grid)
    volumes = [today + 40 * rng.standard_normal(grid.shape) for _ in range(12)]
    drawn = carry(decoder, placed(), today, grid, volumes=volumes)
    assert prior.noise_sd is not None
    assert drawn.noise_sd is not None
    ratio = functional(drawn)[drawn.mask] / functional(prior)[drawn.mask]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=CONSTANT)
    own = np.std([smooth(v, grid.voxel_size_mm, 4.0) for v in volumes], axis=0, ddof=1)[drawn.mask]
    found = drawn.noise_sd[drawn.mask]
    assert np.median(found) == pytest.approx(np.median(own), rel=0.05)  # of twelve volumes in some thousand voxels
    assert np.corrcoef(found, own)[0, 1] > 0.5
    assert np.corrcoef(found, prior.noise_sd[drawn.mask])[0, 1] > 0.3
    fewer = carry(decoder, placed(), today, grid, volumes=volumes[:2])
    np.testing.assert_array_equal(fewer.noise_sd, prior.noise_sd)


def test_a_decoder_without_noise_has_none_today() -> None:
    decoder, weight = make_decoder()
    grid = TODAY["larger"]
    found = carry(replace(decoder, noise_sd=None), placed(), reference(grid), grid, volumes=[reference(grid)] * 3)
    assert found.noise_sd is None
    expected = weight(points(grid, MOVED))[found.mask]
    assert np.corrcoef(found.weights[found.mask], expected)[0, 1] > 0.99


def test_what_lies_outside_todays_field_of_view_does_not_count() -> None:
    decoder, _ = make_decoder()
    half = turned((44, 42, 14), (2.4, 2.4, 2.4), (0, 12, 45), (1, 2, 0))
    found, all_of_it = (carry(decoder, placed(), reference(g), g) for g in (half, TODAY["sagittal"]))
    assert found.mask.sum() < 0.8 * all_of_it.mask.sum()
    faces = np.ones(half.shape, bool)
    faces[1:-1, 1:-1, 1:-1] = False
    assert not found.mask[faces].any()
    assert found.noise_sd is not None
    assert ((found.noise_sd > 0) == found.mask).all()
    assert np.abs(found.weights[found.mask]).min() > 0
    projection = Projection(found.weights[found.mask].astype(float), found.noise_sd[found.mask].astype(float))
    still = reference(half)[found.mask].astype(np.float32)
    projection(still)
    assert projection(still + 5 * found.noise_sd[found.mask]) == pytest.approx(0, abs=1e-4)  # what all voxels do alike, in noise sd


def test_voxels_that_do_not_count_stay_so() -> None:
    decoder, _ = make_decoder()
    assert decoder.noise_sd is not None
    dead = decoder.noise_sd.copy()
    dead[:15] = 0
    grid = TODAY["larger"]
    found = carry(replace(decoder, noise_sd=dead), placed(), reference(grid), grid)
    assert found.noise_sd is not None
    share = (found.noise_sd[found.mask] > 0).mean()
    assert share == pytest.approx((dead[decoder.mask] > 0).mean(), abs=0.03)  # voxels at the border go either way
    assert not found.weights[found.noise_sd == 0].any()


def test_a_head_that_is_not_there_is_refused() -> None:
    decoder, _ = make_decoder()
    grid = TODAY["larger"]
    with pytest.raises(DecoderError, match="expected its mask inside today's field of view, found 0 voxels"):
        carry(decoder, placed(matrix_from_params([300.0, 0, 0, 0, 0, 0])), reference(grid), grid)
    with pytest.raises(DecoderError, match="expected signal where its mask lies in today's reference"):
        carry(decoder, placed(), np.zeros(grid.shape), grid)
    with pytest.raises(GeometryError, match=r"expected the shape of today's grid, \(28, 30, 24\), found \(3, 3, 3\)"):
        carry(decoder, placed(), np.zeros((3, 3, 3)), grid)


def test_settings_say_where_a_decoder_comes_from() -> None:
    decoder, _ = make_decoder()
    grid = TODAY["larger"]
    found = carry(decoder, placed(), reference(grid), grid)
    assert {key: value for key, value in found.settings.items() if key != "placed"} == decoder.settings
    assert json.loads(json.dumps(found.settings["placed"], allow_nan=False))["placement"]["matrix"] == MOVED.tolist()
    assert found.settings["placed"]["voxels_today"] == found.mask.sum()
    np.testing.assert_array_equal(found.reference, reference(grid).astype(np.float32))


def scores(decoder: Decoder, volumes: np.ndarray, method: str, onsets: np.ndarray) -> np.ndarray:
    scorer = Scorer(decoder, TR_S, method=method, fwhm_mm=4.0, duration_s=3.0)  # type: ignore[arg-type]
    last, shown = {}, 0
    for index, volume in enumerate(volumes):
        while shown < len(onsets) and onsets[shown] < (index + 1) * TR_S:
            scorer.add_onset((0, shown), float(onsets[shown]))
            shown += 1
        scorer.add_volume(index, volume, np.zeros(6))
    for score in scorer.ready(final=True):
        last[score.key[1]] = score.score
    return np.array([last[k] for k in range(len(onsets))])


@pytest.fixture(scope="module")
def session() -> tuple[Decoder, dict[str, np.ndarray], np.ndarray]:
    """Return a decoder, the volumes of one session as three grids see them, and onsets.

    Responses lie along the map; what else changes is smooth noise of the head, the same on every grid.
    """
    rng = np.random.default_rng(1)
    decoder, weight = make_decoder(1)
    onsets = 6 + 5.0 * np.arange(24)
    times = (np.arange(140) + 0.5) * TR_S
    liking = 8.0 * rng.standard_normal(24) @ [response(times - onset, 3.0) for onset in onsets]
    courses = rng.standard_normal((40, len(times)))
    for t in range(1, len(times)):
        courses[:, t] += 0.4 * courses[:, t - 1]
    parts = [waves(rng, size, 12) for size in np.repeat([3.0, 5.0], 20)]

    def volumes(grid: Grid, matrix: np.ndarray) -> np.ndarray:
        p = points(grid, matrix).astype(np.float32)
        head = ball(p, 36)
        maps = np.stack([weight(p) * head, *(part(p) * head for part in parts)]).astype(np.float32)
        return 1000 * head + np.tensordot(np.vstack([liking, 3.0 * courses]).T.astype(np.float32), maps, axes=1)

    seen = {"home": volumes(HOME, np.eye(4)), **{name: volumes(TODAY[name], MOVED) for name in ("larger", "sagittal")}}
    return decoder, seen, onsets


@pytest.mark.parametrize("name", ["larger", "sagittal"])
@pytest.mark.parametrize("method", ["deconvolve", "pattern", "peak"])
def test_scores_are_those_of_the_decoders_own_grid(session: tuple, name: str, method: str) -> None:
    decoder, volumes, onsets = session
    found = carry(decoder, placed(), reference(TODAY[name]), TODAY[name])
    home = scores(decoder, volumes["home"], method, onsets)
    today = scores(found, volumes[name], method, onsets)
    assert np.corrcoef(home, today)[0, 1] > SCORES


def test_sampling_is_that_of_cubic_splines() -> None:
    from scipy.ndimage import affine_transform

    rng = np.random.default_rng(0)
    volume = rng.standard_normal((12, 9, 11)).astype(np.float32)
    matrix = np.linalg.inv(matrix_from_params([1.0, 0.5, 2.0, 0.3, -0.2, 1.2], (5, 4, 5)))
    matrix[:3, :3] *= 0.5
    found = sample(volume, matrix, (14, 15, 13))
    expected = affine_transform(volume, matrix[:3, :3], matrix[:3, 3], (14, 15, 13), order=3, mode="mirror")
    at = np.tensordot(matrix[:3, :3], np.indices((14, 15, 13)), axes=1) + matrix[:3, 3][:, None, None, None]
    inside = ((at >= 0) & (at <= np.array([11, 8, 10])[:, None, None, None])).all(axis=0)
    assert inside.sum() > 500
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)  # float32 coefficients
    assert not found[(at < -1).any(axis=0)].any()


@pytest.mark.parametrize("parts", [(1, 1, 1), (2, 3, 1), (3, 2, 2)])
def test_collecting_is_the_adjoint_of_interpolating(parts: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    shape = (14, 13, 12)
    values = np.zeros([n * k for n, k in zip(shape, parts, strict=True)])
    inner = tuple(slice(4 * k, -4 * k) for k in parts)  # away from edges, as in use
    values[inner] = rng.standard_normal(values[inner].shape)
    volume = rng.standard_normal(shape)
    place = np.diag([*(1 / np.array(parts)), 1.0])
    place[:3, 3] = 0.5 / np.array(parts) - 0.5
    interpolated = sample(volume, place, values.shape)  # type: ignore[arg-type]
    expected = (values * interpolated).sum() / np.prod(parts)
    assert (collect(values, parts) * volume).sum() == pytest.approx(expected, abs=1e-3 * np.abs(values).sum() / np.prod(parts))
    np.testing.assert_allclose(collect(np.full(values.shape, 3.0), parts), 3.0, rtol=1e-12)
