"""Distortion undone, against volumes that were distorted by a known map."""

from __future__ import annotations

import math

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from rtevo.errors import DataError
from rtevo.kernels.rigid import matrix_from_params
from rtevo.realign import Encoding, Making, Realigner, Warp, read_warp
from rtevo.realign.making import PLAIN
from rtevo.records import Grid

SHAPE = (30, 32, 20)
AFFINE = np.array([[-3.0, 0.1, 0.2, 40.0], [0.1, 2.9, -0.6, -35.0], [0.15, 0.6, 3.2, -20.0], [0, 0, 0, 1]])
GRID = Grid(SHAPE, AFFINE)
READOUT_S = 0.03
SAME_VOXELS = 1e-4  # maps go through files in float32
LEFT = 0.35  # of the distortion's difference, that two interpolations of a small phantom and its margin leave


def smooth_map(most: float) -> np.ndarray:
    """A map with one hill and one valley."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    hill = np.exp(-((x - 0.2) ** 2 + (y - 0.3) ** 2 + z**2) / 0.18) - 0.6 * np.exp(-((x + 0.3) ** 2 + (y + 0.2) ** 2 + z**2) / 0.12)
    return np.asarray(most * hill)


def save(path, data, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return path


@pytest.mark.parametrize("direction", ["i", "i-", "j", "j-", "k-"])
def test_a_field_in_any_unit_and_its_displacements_are_one_map(tmp_path, direction):
    """As SDCFlows has it: a field of f Hz moves signal f times the read-out time voxels along the direction of phase encoding."""
    hertz, encoding, axis = smooth_map(60.0), Encoding(direction, READOUT_S), "ijk".index(direction[0])
    voxels = hertz * READOUT_S * (-1 if direction.endswith("-") else 1)
    found = [
        read_warp(save(tmp_path / "hz.nii.gz", hertz), "Hz", GRID, encoding),
        read_warp(save(tmp_path / "rads.nii", 2 * math.pi * hertz), "rad/s", GRID, encoding),
        read_warp(save(tmp_path / "voxels.nii", voxels), "voxels", GRID, encoding),
    ]
    ras_mm = voxels[..., None] * AFFINE[:3, axis]
    lps_mm = ras_mm * [-1, -1, 1]
    found.append(read_warp(save(tmp_path / "ants.nii.gz", lps_mm[:, :, :, None, :]), "mm", GRID, None))
    for warp in found:
        np.testing.assert_allclose(warp.shift[..., axis], voxels, atol=SAME_VOXELS)
        np.testing.assert_allclose(np.delete(warp.shift, axis, axis=-1), 0, atol=SAME_VOXELS)
        np.testing.assert_allclose(warp.gain, np.maximum(1 + np.gradient(voxels, axis=axis), 0), atol=10 * SAME_VOXELS)


def test_a_map_on_a_grid_of_its_own_is_taken_in_the_scanners_space(tmp_path):
    finer = Grid((40, 50, 45), np.array([[2.5, 0, 0, -60], [0, 2.5, 0, -60], [0, 0, 2.5, -60], [0, 0, 0, 1]]))
    world = np.einsum("ab,bxyz->axyz", finer.affine[:3, :3], np.indices(finer.shape)) + finer.affine[:3, 3].reshape(3, 1, 1, 1)
    plane = 0.5 * world[0] - 0.2 * world[1] + 0.1 * world[2] + 3
    warp = read_warp(save(tmp_path / "field.nii", plane, finer.affine), "Hz", GRID, Encoding("j", READOUT_S))
    here = np.einsum("ab,bxyz->axyz", AFFINE[:3, :3], np.indices(SHAPE)) + AFFINE[:3, 3].reshape(3, 1, 1, 1)
    inside = np.einsum("ab,bxyz->axyz", np.linalg.inv(finer.affine)[:3, :3], here - finer.affine[:3, 3].reshape(3, 1, 1, 1))
    known = ((inside >= 0) & (inside <= np.array(finer.shape).reshape(3, 1, 1, 1) - 1)).all(axis=0)
    wanted = (0.5 * here[0] - 0.2 * here[1] + 0.1 * here[2] + 3) * READOUT_S
    assert known.mean() > 0.5
    np.testing.assert_allclose(warp.shift[..., 1][known], wanted[known], atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "unit", "most", "what"),
    [
        ((4, 4, 4, 7), "Hz", 1.0, r"expected a map \(X, Y, Z\) for Hz, found shape \(4, 4, 4, 7\)"),
        ((4, 4, 4), "mm", 1.0, r"expected a displacement field \(X, Y, Z, 1, 3\) for mm, found shape \(4, 4, 4\)"),
        ((4, 4, 4), "voxels", 300.0, r"expected displacements of at most 60 mm, found \d+ mm: is it in voxels\?"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path, shape, unit, most, what):
    with pytest.raises(DataError, match=what):
        read_warp(save(tmp_path / "map.nii", np.full(shape, most)), unit, GRID, Encoding("j", READOUT_S))
    (tmp_path / "text.nii").write_text("no image")
    with pytest.raises(DataError, match="expected a NIfTI image"):
        read_warp(tmp_path / "text.nii", "Hz", GRID, Encoding("j", READOUT_S))


def test_headers_that_do_not_say_how_pictures_were_encoded_are_named():
    said = {"PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.04}
    assert Encoding.of(said) == Encoding("j-", 0.04)
    assert Encoding.of(said, "i", 0.02) == Encoding("i", 0.02)
    with pytest.raises(DataError, match="set phase_encoding"):
        Encoding.of({"TotalReadoutTime": 0.04})
    with pytest.raises(DataError, match="set readout_s"):
        Encoding.of({"PhaseEncodingDirection": "j"})
    with pytest.raises(DataError, match="set phase_encoding"):  # the polarity is not known
        Encoding.of({"PhaseEncodingAxis": "j", "TotalReadoutTime": 0.04})
    assert Encoding.of({"PhaseEncodingAxis": "j"}, unit="voxels").direction == "j"


def phantom() -> np.ndarray:
    grid = [(np.arange(n) - (n - 1) / 2) / (0.36 * n) for n in SHAPE]
    x, y, z = np.meshgrid(*grid, indexing="ij")
    head = 1 / (1 + np.exp(8 * (np.sqrt(x**2 + y**2 + z**2) - 1)))
    texture = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=SHAPE), 1.8)
    return np.asarray(1000 * head * (1 + 0.25 * texture / texture.std()))


def distorted(volume: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """What an echo-planar scan makes of a volume: each voxel's signal, spread over a hundredth of voxels, lies `shift` further along y."""
    fine = 20
    y = np.linspace(-0.5, SHAPE[1] - 0.5, SHAPE[1] * fine + 1)[:-1] + 0.5 / fine
    out = np.zeros(SHAPE)
    for i in range(SHAPE[0]):
        for k in range(SHAPE[2]):
            signal, moved = np.interp(y, np.arange(SHAPE[1]), volume[i, :, k]), np.interp(y, np.arange(SHAPE[1]), shift[i, :, k])
            at = y + moved
            low = np.floor(at).astype(int)
            for cell, share in ((low, 1 - (at - low)), (low + 1, at - low)):
                inside = (cell >= 0) & (cell < SHAPE[1])
                out[i, :, k] += np.bincount(cell[inside], (signal * share)[inside] / fine, SHAPE[1])
    return out


def test_distortion_is_undone_where_it_moves_with_the_head():
    """Signal that a known field has moved and piled up comes back to its place, also of a head that has moved, in one interpolation."""
    head, shift = phantom(), smooth_map(1.5)
    centre = AFFINE[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + AFFINE[:3, 3]
    moved = matrix_from_params([1.2, -0.8, 0.9, 0.02, -0.015, 0.02], centre)
    back = np.linalg.inv(AFFINE) @ np.linalg.inv(moved) @ AFFINE

    def at_its_place(volume):
        return ndimage.affine_transform(volume, back[:3, :3], back[:3, 3], order=3, mode="nearest")

    still, later = distorted(head, shift), distorted(at_its_place(head), at_its_place(shift))
    warp = Warp.of(np.stack([np.zeros(SHAPE), shift, np.zeros(SHAPE)], axis=-1))
    brain = ndimage.binary_erosion(head > 300, iterations=2)
    with Realigner(still, AFFINE) as realigner:
        for volume in (still, later):
            motion = realigner.estimate(volume)
            plain, corrected = PLAIN.aligned(realigner, volume, motion), Making(warp).aligned(realigner, volume, motion)
            off, left = (float(np.abs(each - head)[brain].mean()) for each in (plain, corrected))
            assert left < LEFT * off


def test_a_map_whose_affine_places_nothing_is_refused(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), None)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), 1)
    nibabel.save(image, tmp_path / "flat.nii")
    with pytest.raises(DataError, match="expected an affine from voxels to mm"):
        read_warp(tmp_path / "flat.nii", "Hz", GRID, Encoding("j", READOUT_S))
