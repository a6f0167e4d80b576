"""Slots of rings -> the log, pictures and volumes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import full_disk
from rtevo.record.kinds import ImageRecord, LatentRecord, RefusedRecord
from rtevo.record.log import LOG, LogWriter, read_log
from rtevo.record.sealing import sealed_told
from rtevo.records import Grid, MessageKind, VolumeFlag, volume_of

__all__ = ["Recorder", "compact", "image_path", "placement_folder", "read_volume", "reference_path", "refused_path", "volume_path"]


def image_path(out: Path, generation: int, candidate: int) -> Path:
    """Return the path of a picture."""
    return out / "images" / f"generation-{generation:02d}" / f"candidate-{candidate:02d}.png"


def refused_path(out: Path, generation: int, candidate: int, attempt: int) -> Path:
    """Return the path of a picture that the gate refused."""
    return out / "refused" / f"generation-{generation:02d}" / f"candidate-{candidate:02d}-attempt-{attempt}.png"


def volume_path(out: Path, index: int, kind: str = "volumes") -> Path:
    """Return the path of a volume; `kind` is ``volumes`` (raw) or ``aligned``."""
    return out / kind / f"volume-{index:05d}.nii.gz"


def read_volume(path: Path) -> NDArray[np.float32]:
    """Read a volume that was saved: float32 (X, Y, Z), or (echoes, X, Y, Z) where the file has a fourth dimension.

    Raises
    ------
    OSError, nibabel.filebasedimages.ImageFileError, ValueError
        It is not there, or no volume.
    """
    import nibabel

    data = np.asarray(nibabel.load(path).dataobj, np.float32)
    return np.ascontiguousarray(np.moveaxis(data, -1, 0)) if data.ndim == 4 else data


def placement_folder(out: Path, part: int) -> Path:
    """Return the folder of a part's attempts to place the decoder on today's head."""
    return out / "placement" / f"part-{part:02d}"


def reference_path(out: Path, part: int, attempt: int) -> Path:
    """Return the path of an attempt's reference of today."""
    return placement_folder(out, part) / f"reference-{attempt}.nii.gz"


def compact(data: NDArray[np.float32]) -> NDArray[Any]:
    """Return a volume in the smallest of int16, uint16 and float32 that holds every value exactly."""
    if np.isfinite(data).all() and np.array_equal(data, np.rint(data)):
        low, high = float(data.min()), float(data.max())
        for kind in (np.int16, np.uint16):
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return data.astype(kind)
    return data


def _plain(value: Any) -> Any:
    """Return a field of a slot as a JSON value."""
    if isinstance(value, np.ndarray):
        return base64.b64encode(value.tobytes()).decode() if value.dtype == np.float32 else value.tolist()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


class Recorder:
    """Write slots to the log, pictures to PNG and volumes to NIfTI.

    Parameters
    ----------
    out : Path
        The session's folder.
    save_raw : bool
        Whether to keep raw volumes; aligned ones are kept if they come with data.
    part : int
        Part of the session; its grid is recorded with its first volume.
    maps : sequence of str
        Names of the maps whose scores come with those of an objective.
    secret : bytes
        Secret of a sealed session: evolution's fitness is recorded encrypted. Empty: the session is not sealed.

    Attributes
    ----------
    problems : list of str
        Problems with saving since the caller emptied the list.
    """

    def __init__(self, out: Path, save_raw: bool = False, part: int = 0, maps: Sequence[str] = (), secret: bytes = b"") -> None:
        self.out, self.save_raw, self._part, self._grid_known = out, save_raw, part, False
        self._maps, self._secret = tuple(maps), secret
        self._told: list[tuple[dict[str, Any], int]] = []  # of a sealed session: fitness after one score, each with its time
        self.problems: list[str] = []
        log = read_log(out / LOG) if (out / LOG).exists() else []
        self._painted = {_painting(r.type, r.fields()) for r in log if isinstance(r, (LatentRecord, ImageRecord, RefusedRecord))}
        self.log = LogWriter(out / LOG)

    def take(self, ring: str, slot: Any, clock_ns: int = 0) -> None:
        """Record one slot of a ring.

        An image that was requested and painted, but not shown, in an earlier part of the session is not recorded again.

        Parameters
        ----------
        ring : str
        slot : numpy.void
            A private copy of the slot.
        clock_ns : int
            Session time now, ns.
        """
        fields = {name: _plain(slot[name]) for name in slot.dtype.names if name not in ("pixels", "data", "shape", "affine")}
        if ring == "physiology":
            fields["values"] = _plain(np.array(slot["values"][: fields.pop("count")]))
        if ring in ("images", "refused"):
            self._take_picture(ring, fields, np.array(slot["pixels"]))
        elif ring == "volumes" and not fields["flags"] & VolumeFlag.MISSING:
            volume, grid = volume_of(slot)
            self._record_grid(grid, clock_ns)
            if self.save_raw and not self._saved(volume_path(self.out, fields["index"]), volume, grid):
                fields["saved"] = False
        elif ring == "aligned" and "data" in slot.dtype.names:
            self._save_volume(volume_path(self.out, fields["index"], "aligned"), *volume_of(slot))
        if not fields.get("acquisition", True):
            del fields["acquisition"]
        elif ring == "volumes":
            fields["acquisition"] = json.loads(fields["acquisition"])
        if self._secret and ring == "fitness":
            self._hold(fields, clock_ns)
            return
        if ring == "latents":  # after a request no more fitness follows from the previous score
            self.flush()
        if "maps" in fields:
            fields["maps"] = dict(zip(self._maps, fields["maps"], strict=True))
        if ring == "messages":
            ring = MessageKind(fields.pop("kind")).name.lower()
        if _painting(ring, fields) not in self._painted:
            self.log.append(ring, fields, clock_ns)

    def flush(self) -> None:
        """Record the held fitness of a sealed session; called at the end."""
        if self._told:
            self.log.append("sealed", sealed_told([fields for fields, _ in self._told], self._secret), self._told[0][1])
            self._told.clear()

    def _hold(self, fields: dict[str, Any], clock_ns: int) -> None:
        """Hold fitness until all records that follow from one score have come: their number would reveal the condition."""
        if self._told and self._told[0][0]["scores_taken"] != fields["scores_taken"]:
            self.flush()
        self._told.append((fields, clock_ns))

    def _take_picture(self, ring: str, fields: dict[str, Any], pixels: NDArray[np.uint8]) -> None:
        """Save a picture; a refused one among the refused."""
        fields["sha256"], fields["verdict"] = hashlib.sha256(pixels.tobytes()).hexdigest(), json.loads(fields["verdict"] or "[]")
        where = fields["generation"], fields["candidate"]
        if ring == "refused":
            self._save_image(refused_path(self.out, *where, fields["attempt"]), pixels)
        elif not fields["refused"]:
            self._save_image(image_path(self.out, *where), pixels)

    def _save_image(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        from PIL import Image

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}")
        Image.fromarray(pixels).save(part, format="png", compress_level=1)
        _into_place(part, path)

    def _record_grid(self, grid: Grid, clock_ns: int) -> None:
        """Record the grid of a part's volumes, once."""
        if not self._grid_known:
            self._grid_known = True
            self.log.append("grid", {"part": self._part, "shape": list(grid.shape), "affine": grid.affine.tolist()}, clock_ns)

    def _saved(self, path: Path, data: NDArray[np.float32], grid: Grid) -> bool:
        """Save a raw volume; return whether it was saved. A full disk ends the session."""
        try:
            self._save_volume(path, data, grid)
        except OSError as error:
            if full_disk(error, self.out):
                raise
            self.problems.append(f"{path}: the volume could not be saved ({error.strerror or error}): the session continues without it")
            return False
        return True

    def _save_volume(self, path: Path, data: NDArray[np.float32], grid: Grid) -> None:
        import nibabel

        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}")
        nibabel.save(nibabel.Nifti1Image(compact(np.moveaxis(data, 0, -1) if data.ndim == 4 else data), grid.affine), part)
        _into_place(part, path)


def _painting(kind: str, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the key of an image's record, to recognise an image that a resumed session paints again."""
    return (kind, *(fields.get(name) or 0 for name in ("generation", "candidate", "attempt", "refused", "sha256")))


def _into_place(part: Path, path: Path) -> None:
    """Rename a file once it is on the disk: a file under its final name is whole, and every file that the log names exists."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
