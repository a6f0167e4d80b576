"""Transforms of other programs: as nitransforms writes them, and by hand from each program's documentation."""

from __future__ import annotations

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from nitransforms.linear import Affine
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from rtevo.errors import DataError
from rtevo.place.transforms import read_affine, read_chain
from rtevo.records import Grid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SINGLE, SIX_DIGITS = 2e-5, 2e-3  # mm at 100 mm: float32; the digits that nitransforms writes
M = np.eye(4)
M[:3, :3] = Rotation.from_euler("zyx", [14, -9, 21], degrees=True).as_matrix()
M[:3, 3] = (11.0, -23.5, 7.25)
DECODER = Grid((40, 44, 30), np.array([[-3.0, 0, 0, 58], [0, 3, 0, -70], [0, 0, 3.3, -40], [0, 0, 0, 1]]))  # LAS: negative determinant


def grid(turned: bool) -> Grid:
    """Return today's grid: coronal slices (determinant > 0), oblique or not."""
    affine = np.array([[2.0, 0, 0, -70], [0, 0, 2.5, -90], [0, 2.0, 0, -60], [0, 0, 0, 1]])
    affine[:3, 0] *= -1  # so that it is positive
    affine[0, 3] = 70
    if turned:
        affine[:3, :3] = Rotation.from_euler("zyx", [5, -12, 16], degrees=True).as_matrix() @ affine[:3, :3]
    return Grid((70, 64, 50), affine)


TODAY = grid(False)


def image(one: Grid) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.zeros(one.shape, np.uint8), one.affine)


def read(path: Path, today: Grid = TODAY) -> np.ndarray:
    return read_affine(path, DECODER, today)


def close(found: np.ndarray, tolerance_mm: float, expected: np.ndarray = M) -> None:
    points = np.vstack([np.random.default_rng(0).uniform(-100, 100, (3, 50)), np.ones(50)])
    np.testing.assert_allclose(found @ points, expected @ points, atol=tolerance_mm)


WRITTEN = [("itk", "x.txt"), ("itk", "x.tfm"), ("itk", "x.mat"), ("fsl", "x.mat"), ("afni", "x.aff12.1D"), ("lta", "x.lta")]


@pytest.mark.parametrize(("fmt", "name"), WRITTEN)
@pytest.mark.parametrize("turned", [False, True])
def test_what_nitransforms_writes(tmp_path: Path, fmt: str, name: str, turned: bool) -> None:
    today = grid(turned)
    Affine(M, reference=image(DECODER)).to_filename(tmp_path / name, fmt=fmt, moving=image(today))
    close(read(tmp_path / name, today), SIX_DIGITS)


# By hand


def itk_parameters(centre: np.ndarray) -> np.ndarray:
    """x -> R (x - centre) + centre + t in LPS, fixed to moving (ITK Software Guide, MatrixOffsetTransformBase): R row by row, then t."""
    a = LPS @ M @ LPS
    return np.concatenate([a[:3, :3].ravel(), a[:3, 3] + a[:3, :3] @ centre - centre])


def itk_text(kind: str, parameters: np.ndarray, fixed: np.ndarray) -> str:
    lines = ["#Insight Transform File V1.0", "#Transform 0", f"Transform: {kind}"]
    lines += [f"{key}: " + " ".join(repr(float(v)) for v in row) for key, row in (("Parameters", parameters), ("FixedParameters", fixed))]
    return "\n".join(lines) + "\n"


CENTRE = np.array([5.0, -12.0, 20.0])


@pytest.mark.parametrize("kind", ["AffineTransform_double_3_3", "MatrixOffsetTransformBase_double_3_3"])
def test_itk_by_hand(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.txt").write_text(itk_text(kind, itk_parameters(CENTRE), CENTRE))
    close(read(tmp_path / "x.txt"), SINGLE)
    savemat(tmp_path / "0GenericAffine.mat", {kind: itk_parameters(CENTRE)[:, None], "fixed": CENTRE[:, None]}, format="4")
    close(read(tmp_path / "0GenericAffine.mat"), SINGLE)


def test_itk_rotations_by_hand(tmp_path: Path) -> None:
    a = LPS @ M @ LPS
    turn, shift = Rotation.from_matrix(a[:3, :3]), itk_parameters(CENTRE)[-3:]
    z, x, y = turn.as_euler("ZXY")  # R = Rz Rx Ry: the default of itk::Euler3DTransform
    euler = itk_text("Euler3DTransform_double_3_3", np.array([x, y, z, *shift]), np.array([*CENTRE, 0]))
    both = "#Transform 0\nTransform: CompositeTransform_double_3_3\n#Transform 1\n"  # as SimpleITK writes what a registration returns
    (tmp_path / "euler.tfm").write_text(euler.replace("#Transform 0\n", both))
    z, y, x = turn.as_euler("ZYX")
    (tmp_path / "zyx.tfm").write_text(itk_text("Euler3DTransform_double_3_3", np.array([x, y, z, *shift]), np.array([*CENTRE, 1])))
    versor = turn.as_quat(canonical=True)[:3]
    (tmp_path / "versor.txt").write_text(itk_text("VersorRigid3DTransform_double_3_3", np.array([*versor, *shift]), CENTRE))
    for name in ("euler.tfm", "zyx.tfm", "versor.txt"):
        close(read(tmp_path / name), SINGLE)


@pytest.mark.parametrize("turned", [False, True])
def test_fsl_by_hand(tmp_path: Path, turned: bool) -> None:
    """FLIRT's matrix takes mm of `in` to mm of `ref`: voxels times their size, x from the other side where the determinant is > 0."""

    def mm(one: Grid) -> np.ndarray:
        scaled = np.diag([*one.voxel_size_mm, 1.0])
        if np.linalg.det(one.affine) > 0:
            mirror = np.diag([-1.0, 1, 1, 1])
            mirror[0, 3] = one.shape[0] - 1
            scaled = scaled @ mirror
        return scaled @ np.linalg.inv(one.affine)

    today = grid(turned)
    assert np.linalg.det(DECODER.affine) < 0 < np.linalg.det(today.affine)
    flirt = mm(DECODER) @ np.linalg.inv(M) @ np.linalg.inv(mm(today))
    (tmp_path / "flirt.mat").write_text("".join("  ".join(f"{v:.10f}" for v in row) + "  \n" for row in flirt))
    close(read(tmp_path / "flirt.mat", today), SINGLE)


@pytest.mark.parametrize("turned", [False, True])
def test_afni_by_hand(tmp_path: Path, turned: bool) -> None:
    """3dAllineate's matrix takes base to source, DICOM (LPS) mm, row by row; oblique axes count as the nearest cardinal ones."""
    today = grid(turned)
    plumb = grid(False).affine.copy()
    plumb[:3, 3] = today.affine[:3, 3]
    seen = LPS @ plumb @ np.linalg.inv(today.affine) @ M @ LPS
    numbers = " ".join(f"{v:.9g}" for v in seen[:3].ravel())
    (tmp_path / "x.aff12.1D").write_text(f"# 3dAllineate matrices (DICOM-to-DICOM, row-by-row):\n {numbers}\n")
    close(read(tmp_path / "x.aff12.1D", today), SINGLE)
    (tmp_path / "x.1D").write_text("\n".join(" ".join(f"{v:.9g}" for v in row) for row in seen[:3]))  # as cat_matvec prints
    close(read(tmp_path / "x.1D", today), SINGLE)


@pytest.mark.parametrize("kind", ["voxels", "ras"])
def test_freesurfer_by_hand(tmp_path: Path, kind: str) -> None:
    """An LTA takes src (mov) to dst, voxel to voxel (type 0) or RAS to RAS (1); c_ras is the place of voxel (width, height, depth) / 2."""

    def info(one: Grid) -> str:
        a, size = one.affine, one.voxel_size_mm
        axes = [f"{name}ras   = " + " ".join(f"{v:.15e}" for v in a[:3, n] / size[n]) for n, name in enumerate("xyz")]
        middle = a[:3, :3] @ (np.array(one.shape) / 2) + a[:3, 3]
        head = ["valid = 1  # volume info valid", "filename = some.nii", "volume = {} {} {}".format(*one.shape)]
        sizes, centre = ("{:.15e} {:.15e} {:.15e}".format(*row) for row in (size, middle))
        return "\n".join([*head, f"voxelsize = {sizes}", *axes, f"cras   = {centre}"])

    today = grid(True)
    matrix = np.linalg.inv(M) if kind == "ras" else np.linalg.inv(DECODER.affine) @ np.linalg.inv(M) @ today.affine
    lines = [f"type      = {int(kind == 'ras')} # LINEAR_{'RAS_TO_RAS' if kind == 'ras' else 'VOX_TO_VOX'}", "nxforms   = 1"]
    lines += ["mean      = 0.0000 0.0000 0.0000", "sigma     = 1.0000", "1 4 4", *(" ".join(f"{v:.15e}" for v in row) for row in matrix)]
    lines += ["src volume info", info(today), "dst volume info", info(DECODER), "subject fsaverage", "fscale 0.150000", ""]
    (tmp_path / "x.lta").write_text("# transform file x.lta\n# created by hand\n\n" + "\n".join(lines))
    close(read(tmp_path / "x.lta", today), 1e-3)  # nitransforms reads the matrix in single precision, of voxels


def test_a_plain_matrix_is_the_transform_itself(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "m.txt", M)
    close(read(tmp_path / "m.txt"), 1e-9)


def composite(path: Path, parts: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Write ITK's HDF5 file: what was added last, and is listed last, is what points pass first."""
    with h5py.File(path, "w") as file:
        for number, (kind, parameters, fixed) in enumerate([("CompositeTransform_double_3_3", np.zeros(0), np.zeros(0)), *parts]):
            group = file.create_group(f"TransformGroup/{number}")
            group.create_dataset("TransformType", data=np.array([kind.encode()]))
            if number:
                group.create_dataset("TransformParameters", data=parameters)
                group.create_dataset("TransformFixedParameters", data=fixed)


def field() -> tuple[np.ndarray, np.ndarray]:
    """Return a displacement field in RAS, different along each axis, and its affine."""
    shape, affine = (30, 26, 22), np.array([[-8.0, 0, 0, 116], [0, 8, 0, -100], [0, 0, 8, -84], [0, 0, 0, 1]])
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    return bend(world) - world, affine


def bend(p: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(p, -1, 0)
    return p + np.stack([3 * np.sin(y / 60), 5 * np.cos(z / 70) + 1, 0.0002 * x * y], axis=-1)


POINTS = np.random.default_rng(1).uniform(-50, 50, (200, 3))
CUBIC = 0.02  # mm: cubic splines through sines of 60 mm every 8 mm, three voxels from the field's edge


def test_an_ants_displacement_field_by_hand(tmp_path: Path) -> None:
    """ANTs writes displacements in LPS mm, (X, Y, Z, 1, 3) with the intent 'vector'."""
    moved, affine = field()
    stored = nib.Nifti1Image((moved * [-1, -1, 1])[:, :, :, None, :].astype(np.float32), affine)
    stored.header.set_intent("vector")
    stored.to_filename(tmp_path / "1Warp.nii.gz")
    np.savetxt(tmp_path / "m.txt", M)
    (tmp_path / "a.txt").write_text(itk_text("AffineTransform_double_3_3", itk_parameters(CENTRE), CENTRE))
    chain = read_chain([tmp_path / "1Warp.nii.gz", tmp_path / "a.txt"], DECODER, TODAY)
    np.testing.assert_allclose(chain(POINTS), bend(POINTS) @ M[:3, :3].T + M[:3, 3], atol=CUBIC)
    near = 0.3 * POINTS  # inside the field also where the matrix takes them
    other = read_chain([tmp_path / "a.txt", tmp_path / "1Warp.nii.gz"], DECODER, TODAY)
    np.testing.assert_allclose(other(near), bend(near @ M[:3, :3].T + M[:3, 3]), atol=CUBIC)
    with pytest.raises(DataError, match="expected a linear transform, found a nonlinear one"):
        read(tmp_path / "1Warp.nii.gz")


def test_an_ants_composite_by_hand(tmp_path: Path) -> None:
    moved, affine = field()
    lps = LPS @ affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    fixed = np.concatenate([moved.shape[:3], lps[:3, 3], size, (lps[:3, :3] / size).ravel()])
    warp = np.moveaxis(moved * [-1, -1, 1], -1, 0).ravel(order="F")
    linear = ("AffineTransform_double_3_3", itk_parameters(CENTRE), CENTRE)
    composite(tmp_path / "from-MNI_to-T1w_xfm.h5", [linear, ("DisplacementFieldTransform_double_3_3", warp, fixed)])
    chain = read_chain([tmp_path / "from-MNI_to-T1w_xfm.h5"], DECODER, TODAY)
    np.testing.assert_allclose(chain(POINTS), bend(POINTS) @ M[:3, :3].T + M[:3, 3], atol=CUBIC)
    composite(tmp_path / "linear.h5", [linear])
    close(read(tmp_path / "linear.h5"), SINGLE)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("x.txt", b"", "expected one matrix"),
        ("x.txt", b"1 2 3\n4 5 6\n", "expected one matrix, 12 numbers"),
        ("x.1D", (b"1 0 0 0 0 1 0 0 0 0 1 0\n" * 2), "found rows of"),
        ("x.txt", b"some words", "found something else"),
        ("x.mat", b"0 0 0 0\n" * 4, "x.mat"),
        ("x.txt", b"0 0 0 0\n" * 4, "expected an invertible finite matrix"),
        ("x.txt", b"#Insight Transform File V1.0\n", "expected one transform, found 0"),
        ("x.txt", itk_text("BSplineTransform_double_3_3", np.zeros(30), np.zeros(3)).encode(), "found BSplineTransform_double_3_3 with 30"),
        ("x.lta", b"type = 1\nnxforms = 3\n", "found something else"),
        ("x.nii.gz", b"no image", "found something else"),
        ("x.h5", b"\x89HDF but not really", "found something else"),
    ],
)
def test_whatever_else_is_refused_by_name(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=found) as refused:
        read(tmp_path / name)
    assert name in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a transform, found"):
        read(tmp_path / "none.mat")
