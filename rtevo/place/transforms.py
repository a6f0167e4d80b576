"""Transforms from other programs, as matrices and functions of the world in RAS+ mm.

One rule for the direction, for all programs: *today's volume was registered to the decoder's reference*. Each program then writes the
transform that its own resampling needs, in its own coordinates; here it becomes the input of :func:`rtevo.place.judge`, decoder's world to
today's world:

========== ================================================================== =====================================================
program    how the file is made                                               contents
========== ================================================================== =====================================================
ITK, ANTs  ``fixed`` = decoder's reference, ``moving`` = today                fixed to moving, LPS mm (.mat, .txt, .tfm, .h5)
FSL        ``flirt -dof 6 -in TODAY -ref REFERENCE -omat X.mat``              in to ref, scaled voxels, the first axis to the left
AFNI       ``3dAllineate -warp shift_rotate -base REFERENCE -source TODAY``,  base to source, LPS mm as if nothing were oblique
           ``-1Dmatrix_save X.aff12.1D``
FreeSurfer ``mri_robust_register --mov TODAY --dst REFERENCE --lta X.lta``    mov to dst, voxels or RAS mm, with both grids
plain      four rows of four numbers, in a file that is not named .mat        decoder's world to today's world, RAS+ mm
========== ================================================================== =====================================================

Files are read by nitransforms (O. Esteban et al. 2021, doi:10.31219/osf.io/8aq7b); rotations that ITK stores as angles or versors are
multiplied out here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError
from rtevo.records import Grid

__all__ = ["DIRECTION", "read_affine", "read_chain"]

Array = NDArray[np.float64]

DIRECTION = (
    "rigid transform from the decoder's world to today's: the point p of the decoder's reference is at M p in today's volume. Register "
    "TODAY to the decoder's ref_img.nii.gz. ITK or ANTs (.mat .txt .tfm .h5): fixed = ref_img, moving = TODAY. FSL (.mat, text): flirt "
    "-dof 6 -in TODAY -ref ref_img -omat X.mat. AFNI (.aff12.1D): 3dAllineate -warp shift_rotate -base ref_img -source TODAY "
    "-1Dmatrix_save X. FreeSurfer (.lta): mri_robust_register --mov TODAY --dst ref_img --lta X.lta. Any other text of 4 x 4 numbers: M "
    "itself, RAS+ mm"
)
"""For ``--help``."""
_SUFFIXES = (".nii", ".nii.gz")


def read_affine(path: Path, reference: Grid, moving: Grid) -> Array:
    """Read a linear transform.

    Parameters
    ----------
    path : Path
        See above; the kind is recognised by the content.
    reference, moving : Grid
        Grids of the decoder's reference and today's volume, needed for FSL's and AFNI's files.

    Returns
    -------
    ndarray, float64 (4, 4)
        World of `reference` to world of `moving`, RAS+ mm.

    Raises
    ------
    DataError
        The file does not exist, is of an unknown kind, or does not hold a single linear transform.
    """
    parts = _read(path, reference, moving)
    matrices = [part for part in parts if isinstance(part, np.ndarray)]
    if len(matrices) != len(parts):
        raise DataError(f"{path}: expected a linear transform, found a nonlinear one (those are for maps: python -m rtevo.decode import)")
    matrix = np.eye(4)
    for each in matrices:  # in the order of application to points
        matrix = each @ matrix
    return matrix


def read_chain(paths: Sequence[Path], reference: Grid, moving: Grid) -> Callable[[Array], Array]:
    """Read a chain of transforms, linear or not, from points of one space to another.

    Parameters
    ----------
    paths : sequence of Path
        In the order of ``antsApplyTransforms -r REFERENCE -i MOVING -t A -t B``: the first is applied first to points of the reference.
        Besides linear ones: composites of ANTs and fMRIPrep (.h5), and ANTs' displacement fields (.nii.gz).
    reference, moving : Grid
        First and last space; between other spaces only transforms that need no grids (ITK) or hold them (FreeSurfer) are possible.

    Returns
    -------
    callable
        Function from points of the reference's world, float64 (n, 3), to points of the moving volume's world, RAS+ mm.

    Raises
    ------
    DataError
        As for :func:`read_affine`.
    """
    parts = [part for path in paths for part in _read(path, reference, moving)]

    def apply(points: Array) -> Array:
        for part in parts:
            linear = isinstance(part, np.ndarray)
            points = points @ part[:3, :3].T + part[:3, 3] if linear else np.asarray(part.map(points), np.float64)
        return points

    return apply


def _read(path: Path, reference: Grid, moving: Grid) -> list[Any]:
    """Read a file; return matrices and fields of nitransforms, in the order of application to points."""
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise DataError(f"{path}: expected a transform, found: {problem}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from nitransforms, for example about intent codes
            parts = _parse(path, content, reference, moving)
    except DataError:
        raise
    except Exception as problem:  # readers of foreign files raise errors of many kinds
        raise DataError(f"{path}: expected a transform of ITK, FSL, AFNI or FreeSurfer, found something else: {problem}") from None
    for part in parts:
        if isinstance(part, np.ndarray) and not (np.isfinite(part).all() and abs(np.linalg.det(part[:3, :3])) > 1e-6):
            raise DataError(f"{path}: expected an invertible finite matrix, found {part[:3].tolist()}")
    return parts


def _parse(path: Path, content: bytes, reference: Grid, moving: Grid) -> list[Any]:
    """Read a file with the reader for its content."""
    if path.name.endswith(_SUFFIXES):
        from nitransforms.nonlinear import DenseFieldTransform

        return [DenseFieldTransform.from_filename(path, fmt="itk")]
    if content.startswith(b"\x89HDF"):
        return _composite(path)
    if content.startswith(b"#Insight"):
        return [_itk_text(path, content.decode("latin1"))]
    if b"Transform" in content[:200] and b"\0" in content[:200]:
        return [_itk_matlab(path)]
    text = content.decode("utf-8")
    if "nxforms" in text:
        from nitransforms.io.lta import FSLinearTransform

        return [np.asarray(FSLinearTransform.from_string(text).to_ras(), np.float64)]
    return [_numbers(path, text, reference, moving)]


def _numbers(path: Path, text: str, reference: Grid, moving: Grid) -> Array:
    """Read a matrix of plain numbers."""
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    sizes = [len(row) for row in rows]
    values = np.array([float(cell) for row in rows for cell in row])
    fixed, floating = _image(reference), _image(moving)
    if sizes in ([12], [4, 4, 4]):
        from nitransforms.io.afni import AFNILinearTransform

        found = AFNILinearTransform.from_string(" ".join(repr(float(value)) for value in values))
        return np.asarray(found.to_ras(moving=floating, reference=fixed), np.float64)
    if sizes != [4, 4, 4, 4]:
        raise DataError(f"{path}: expected one matrix, 12 numbers (AFNI) or 4 rows of 4 (FSL, plain), found rows of {sizes}")
    if path.suffix != ".mat":
        return values.reshape(4, 4)
    from nitransforms.io.fsl import FSLLinearTransform

    return np.asarray(FSLLinearTransform.from_string(text).to_ras(moving=floating, reference=fixed), np.float64)


def _itk_text(path: Path, text: str) -> Array:
    """Read a text file of ITK."""
    blocks: list[dict[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "Transform":
            blocks.append({})
        if blocks and value:
            blocks[-1][key.strip()] = value.strip()
    found = [block for block in blocks if not block.get("Transform", "").startswith("CompositeTransform")]
    if len(found) != 1:
        raise DataError(f"{path}: expected one transform, found {len(found)}")
    numbers = [np.array(found[0].get(key, "").split(), np.float64) for key in ("Parameters", "FixedParameters")]
    return _itk(path, found[0]["Transform"], numbers[0], numbers[1])


def _itk_matlab(path: Path) -> Array:
    """Read a MATLAB file of ITK."""
    from scipy.io import loadmat

    stored = {key: np.asarray(value, np.float64).ravel() for key, value in loadmat(path).items() if not key.startswith("__")}
    fixed = stored.pop("fixed", np.zeros(3))
    if len(stored) != 1:
        raise DataError(f"{path}: expected one transform, found {', '.join(stored) or 'none'}")
    return _itk(path, *next(iter(stored.items())), fixed)


def _itk(path: Path, kind: str, parameters: Array, fixed: Array) -> Array:
    """Return the matrix of ITK's parameters; see itk::MatrixOffsetTransformBase, Euler3DTransform, VersorRigid3DTransform."""
    from nitransforms.io.itk import ITKLinearTransform

    matrix, name = np.eye(4), kind.split("_")[0]
    if name in ("AffineTransform", "MatrixOffsetTransformBase") and len(parameters) == 12:
        matrix[:3, :3] = parameters[:9].reshape(3, 3)
    elif name == "Euler3DTransform" and len(parameters) == 6:
        x, y, z = (_turn(axis, angle) for axis, angle in enumerate(parameters[:3]))
        matrix[:3, :3] = z @ y @ x if len(fixed) > 3 and fixed[3] else z @ x @ y
    elif name in ("VersorRigid3DTransform", "VersorTransform") and len(parameters) == 6:
        matrix[:3, :3] = _versor(parameters[:3])
    elif name == "TranslationTransform" and len(parameters) == 3:
        fixed = np.zeros(3)
    else:
        raise DataError(f"{path}: expected an affine, Euler or versor transform of ITK, found {kind} with {len(parameters)} parameters")
    matrix[:3, 3] = parameters[-3:]
    return np.asarray(ITKLinearTransform(matrix, fixed[:3]).to_ras(), np.float64)


def _turn(axis: int, angle: float) -> Array:
    """Rotation about one axis, right-handed."""
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = math.cos(angle)
    matrix[j, i], matrix[i, j] = math.sin(angle), -math.sin(angle)
    return matrix


def _versor(vector: Array) -> Array:
    """Rotation by the vector part of a unit quaternion."""
    from scipy.spatial.transform import Rotation

    scalar = math.sqrt(max(1.0 - float(vector @ vector), 0.0))
    return np.asarray(Rotation.from_quat([*vector, scalar]).as_matrix(), np.float64)


def _composite(path: Path) -> list[Any]:
    """Read a composite of ITK (HDF5), in which the last transform is applied first to points."""
    from nitransforms.io.itk import ITKCompositeH5, ITKLinearTransform
    from nitransforms.nonlinear import DenseFieldTransform

    if path.suffix != ".h5":
        raise DataError(f"{path}: expected the suffix .h5 for a composite transform of ITK")
    found = ITKCompositeH5.from_filename(path)
    if not found:
        raise DataError(f"{path}: expected a composite transform, found an empty one")
    return [
        np.asarray(part.to_ras(), np.float64) if isinstance(part, ITKLinearTransform) else DenseFieldTransform(part) for part in found[::-1]
    ]


def _image(grid: Grid) -> Any:
    """An image that has only a grid."""
    import nibabel as nib

    return nib.Nifti1Image(np.zeros(grid.shape, np.uint8), grid.affine)
