"""Nuisance terms of volumes: where compartments lie, what their terms are, and that nothing comes from later volumes."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.decode.compartments import COMPONENTS, KINDS, Compartments, compartments_of, placed_mask
from rtevo.errors import DecoderError
from rtevo.records import Grid

SHAPE = (32, 38, 26)
GRID = Grid(SHAPE, np.diag([5.0, 5.0, 5.0, 1.0]))
NONE = np.zeros(SHAPE, bool)
TR_S = 1.0


def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A head of grey and white matter and a ventricle under a coil's uneven field; white matter and ventricle."""
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij")
    radius = np.sqrt((x / 14) ** 2 + (y / 17) ** 2 + (z / 11) ** 2)
    fluid = np.sqrt((x / 4) ** 2 + (y / 7) ** 2 + (z / 4) ** 2) < 1
    white = (radius < 0.65) & ~fluid
    signal = 1000.0 * (radius < 1) * np.where(fluid, 1.4, np.where(white, 0.9, 1.05)) * (1 + 0.25 * y / 17)
    return (signal + 5 * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32), white, fluid


def series(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes with a rhythm in fluid and another in white matter; both rhythms."""
    reference, white, fluid = head()
    rng = np.random.default_rng(seed)
    pulse, slow = rng.standard_normal((2, n))
    volumes = reference + 5 * rng.standard_normal((n, *SHAPE)).astype(np.float32)
    volumes += 20 * pulse[:, None, None, None] * fluid + 10 * slow[:, None, None, None] * white
    return volumes.astype(np.float32), pulse, slow


def test_fluid_and_white_matter_are_guessed_from_the_brightness() -> None:
    reference, white, fluid = head()
    found = compartments_of(reference, GRID)
    assert (found["csf"] & fluid).sum() > 0.8 * found["csf"].sum()
    assert (found["white_matter"] & white).sum() > 0.8 * found["white_matter"].sum() > 50
    assert found["global"].sum() > 0.9 * (reference > 300).sum()


def test_terms_follow_the_compartments_and_are_not_known_before_the_baseline_is_over() -> None:
    volumes, pulse, slow = series(100)
    _, white, fluid = head()
    masks = {"white_matter": white, "csf": fluid, "global": white | fluid}
    made = Compartments(KINDS, masks, NONE, TR_S)
    terms = np.array([made.terms(volume) for volume in volumes])
    assert made.sizes == (1, 1, COMPONENTS, 1)
    assert np.isnan(terms[:40]).all()
    after = terms[40:]
    assert np.corrcoef(after[:, 0], slow[40:])[0, 1] > 0.99
    assert np.corrcoef(after[:, 1], pulse[40:])[0, 1] > 0.99
    for rhythm in (pulse, slow):  # the first two components span both
        left = rhythm[40:] - after[:, 2:4] @ np.linalg.lstsq(after[:, 2:4], rhythm[40:], rcond=None)[0]
        assert left.var() < 0.1 * rhythm[40:].var()
    assert 0.5 < after[:, :4].std() < 2


def test_a_term_depends_on_no_later_volume_and_a_new_run_has_a_baseline_of_its_own() -> None:
    volumes, _, _ = series(60)
    _, white, fluid = head()
    masks = {"white_matter": white, "csf": fluid, "global": white | fluid}
    one, other = (Compartments(("acompcor", "csf"), masks, NONE, TR_S) for _ in range(2))
    all_of_them = np.array([one.terms(volume) for volume in volumes])
    np.testing.assert_array_equal([other.terms(volume) for volume in volumes[:50]], all_of_them[:50])
    other.interrupt()
    np.testing.assert_array_equal([other.terms(volume) for volume in volumes], all_of_them)


def test_a_volume_with_holes_in_a_compartment_has_no_terms_of_it() -> None:
    volumes, _, _ = series(50)
    _, white, fluid = head()
    made = Compartments(("csf", "white_matter"), {"white_matter": white, "csf": fluid}, NONE, TR_S)
    for volume in volumes[:45]:
        made.terms(volume)
    volumes[45][fluid] = np.nan
    found = made.terms(volumes[45])
    assert np.isnan(found[0])
    assert np.isfinite(found[1])


def test_voxels_that_the_decoder_weighs_are_left_out_of_white_matter_and_fluid() -> None:
    volumes, _, _ = series(60)
    _, white, fluid = head()
    weighed = white & (np.arange(SHAPE[1]) < 19)[None, :, None]
    masks = {"white_matter": white, "csf": fluid}
    made = Compartments(("white_matter",), masks, weighed, TR_S)
    changed = volumes.copy()
    changed[:, weighed] += 1000 * np.random.default_rng(3).standard_normal((60, 1)).astype(np.float32)
    plain = np.array([made.terms(volume) for volume in volumes])
    made.interrupt()
    np.testing.assert_array_equal([made.terms(volume) for volume in changed], plain)


def test_a_mask_lies_on_todays_head_where_the_decoder_does() -> None:
    _, _, fluid = head()
    place = np.eye(4)
    place[:3, 3] = [10.0, -5.0, 0.0]  # two voxels and one
    today = Grid((30, 36, 26), GRID.affine)
    found = placed_mask(fluid, GRID.affine, place, today)
    np.testing.assert_array_equal(found[4:28, 2:34], fluid[2:26, 3:35])


def test_a_compartment_of_too_few_voxels_is_refused_by_name() -> None:
    small = NONE.copy()
    small[:2, :2, :2] = True
    with pytest.raises(DecoderError, match="nuisance: csf: expected at least 20 voxels, found 8: give masks"):
        Compartments(("csf",), {"white_matter": small, "csf": small}, NONE, TR_S)
