"""Live maps for the operator: tSNR so far, the decoder's map, and what each voxel contributes now, on three planes of today's volumes.

They are made of the volumes that the session saves, in the console's process, at its low priority: no stage knows of them, and no ring has
another reader. Where the volumes are kept as they came (``[record] save_volumes = "raw"``) they are not realigned, so that motion shows at
edges. The decoder's map is sampled where the decoder was placed, as the head lay in the first volume of the maps; decoding carries it
(:mod:`rtevo.decode.carry`) and realigns every volume.
"""

from __future__ import annotations

import io
import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rtevo.kernels.rigid import matrix_from_params
from rtevo.record import AlignedRecord, GridRecord, PlacementRecord, Record, volume_path
from rtevo.records import Decision, VolumeFlag

if TYPE_CHECKING:
    from rtevo.decode import Decoder

__all__ = ["FEWEST", "KINDS", "LiveMaps"]

Array = NDArray[np.float64]
KINDS = {"tsnr": "Temporal signal-to-noise so far", "decoder": "The decoder's map", "contribution": "Contribution to the score now"}
EVERY_S = 10.0  # a picture is drawn at most that often
RECENT_S = 10.0  # "now"
FEWEST = 20  # volumes for a standard deviation
PX_PER_MM = 1.2
TEXT_PX, FOOT_PX = 30, 44  # of a picture that the page shows at about two fifths of its size
LEFT_OUT = VolumeFlag.MISSING | VolumeFlag.UNALIGNED | VolumeFlag.SPIKE
WARM, COLD = (240, 150, 30), (70, 150, 240)
SEQUENCE = np.array([[40, 20, 90], [35, 90, 140], [40, 160, 130], [150, 210, 80], [250, 235, 60]], np.float64)  # dark to light


@dataclass(frozen=True)
class _Planes:
    """Where the three planes are, and the decoder's weights there: axes in the order of R, A, S."""

    orientation: Array
    affine: Array
    at: tuple[int, int, int]
    weights: list[Array] | None

    def of(self, volume: NDArray[Any]) -> list[Array]:
        """Return the planes of a volume, sagittal, coronal, axial."""
        from nibabel.orientations import apply_orientation

        data, (i, j, k) = apply_orientation(volume, self.orientation), self.at
        return [np.asarray(part, np.float64) for part in (data[i], data[:, j], data[:, :, k])]


class LiveMaps:
    """The maps of a running session.

    Parameters
    ----------
    out : Path
        The session's folder.
    kind : str
        Which volumes are saved: "raw", "aligned", "both" (the aligned ones are used), "none".
    decoder : Decoder or None
        None for a session without one.
    tr_s : float
    hidden : bool
        The contribution would tell the score, which must not be shown.

    Attributes
    ----------
    problem : str
        Why there are no maps; empty where there are, or will be.
    volumes : int
        Number of volumes read.
    shown : int
        Number of volumes in the last drawing.
    """

    def __init__(self, out: Path, kind: str, decoder: Decoder | None, tr_s: float, hidden: bool) -> None:
        self._out, self._folder = out, "volumes" if kind == "raw" else "aligned"
        self._decoder, self._hidden = decoder, hidden
        self.problem = "" if kind != "none" else "There are no maps: this session saves no volumes ([record] save_volumes)."
        self._recent: deque[list[Array]] = deque(maxlen=max(3, round(RECENT_S / tr_s)))
        self._pictures: dict[str, bytes] = {}
        self.shown, self._drawn_s = 0, -math.inf
        self._begin()

    def _begin(self) -> None:
        """Forget the volumes of another part."""
        self._waiting: deque[int] = deque()
        self._grid: GridRecord | None = None
        self._planes: _Planes | None = None
        self._placed: Array | None = None  # the decoder's world to today's
        self.volumes, self._mean, self._squares = 0, list[Array](), list[Array]()
        self._recent.clear()

    def take(self, record: Record) -> None:
        """Process a record of the log."""
        if self.problem:
            return
        if isinstance(record, GridRecord):
            self._begin()
            self._grid = record
            self._placed = np.eye(4) if self._decoder is None else None
        elif isinstance(record, PlacementRecord) and record.decision == Decision.ACCEPTED and self._grid is not None:
            self._placed = np.array(record.matrix, np.float64) if len(record.matrix) else np.eye(4)
        elif isinstance(record, AlignedRecord) and not record.flags & LEFT_OUT and self._placed is not None and self._grid is not None:
            if self._planes is None:
                moved = _motion(record, self._grid) if self._folder == "volumes" else np.eye(4)
                self._planes = _planes(self._grid, self._decoder, moved @ self._placed)
            self._waiting.append(record.index)

    def step(self) -> bool:
        """Read one volume that waits, and draw where it is time; return whether there was one. It may run in a thread of its own."""
        planes, waiting = self._planes, self._waiting
        if planes is None or not waiting:
            return False
        volume = _read(volume_path(self._out, waiting.popleft(), self._folder))
        if volume is None:
            return True
        self._add(planes.of(volume))
        if self.volumes >= FEWEST and time.monotonic() - self._drawn_s >= EVERY_S:
            self.draw()
        return True

    def picture(self, kind: str) -> bytes | None:
        """Return a map as a PNG file; None where there is none."""
        return self._pictures.get(kind)

    @property
    def realigned(self) -> bool:
        """Whether the volumes are realigned ones."""
        return self._folder == "aligned"

    @property
    def decoded(self) -> bool:
        """Whether there is a decoder."""
        return self._decoder is not None

    @property
    def kinds(self) -> list[str]:
        """Which maps there are."""
        return [kind for kind in KINDS if kind in self._pictures]

    def _add(self, found: list[Array]) -> None:
        """Add a volume to mean and sum of squares (B. P. Welford 1962, doi:10.1080/00401706.1962.10490022)."""
        if not self.volumes:
            self._mean, self._squares = [np.zeros_like(each) for each in found], [np.zeros_like(each) for each in found]
        self.volumes += 1
        for mean, squares, plane in zip(self._mean, self._squares, found, strict=True):
            away = plane - mean
            mean += away / self.volumes
            squares += away * (plane - mean)
        self._recent.append(found)

    def maps(self) -> dict[str, list[Array]]:
        """Return what is drawn, three planes each; NaN where a map is not known."""
        planes, noise = self._planes, [np.sqrt(squares / max(self.volumes - 1, 1)) for squares in self._squares]
        level = max(float(np.percentile(np.concatenate([mean.ravel() for mean in self._mean]), 98)), 1e-300)
        inside = [(mean > 0.2 * level) & (sd > 0) for mean, sd in zip(self._mean, noise, strict=True)]
        tsnr = [np.where(own, m / np.where(own, sd, 1.0), np.nan) for m, sd, own in zip(self._mean, noise, inside, strict=True)]
        found = {"tsnr": tsnr}
        if planes is not None and planes.weights is not None:
            found["decoder"] = [np.where(w == 0, np.nan, w) for w in planes.weights]
            if not self._hidden:
                now = [np.mean(each, axis=0) for each in zip(*self._recent, strict=True)]
                found["contribution"] = [
                    np.where(own & (w != 0), w * (n - m) / np.where(own, sd, 1.0), np.nan)
                    for w, n, m, sd, own in zip(planes.weights, now, self._mean, noise, inside, strict=True)
                ]
        return found

    def draw(self) -> None:
        """Draw all maps of the volumes so far."""
        planes = self._planes
        if planes is None or not self.volumes:
            return
        sizes = np.linalg.norm(planes.affine[:3, :3], axis=0)
        self._pictures = {kind: _draw(values, self._mean, sizes, signed=kind != "tsnr") for kind, values in self.maps().items()}
        self._drawn_s = time.monotonic()
        self.shown = self.volumes


def _read(path: Path) -> NDArray[Any] | None:
    """Read a saved volume; None where it was not saved, or is no volume."""
    import nibabel

    try:
        return np.asarray(nibabel.load(path).dataobj)
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError):
        return None


def _motion(record: AlignedRecord, grid: GridRecord) -> Array:
    """Return where the head lies in a volume, against its reference: from the reference's world to the volume's."""
    affine, shape = np.array(grid.affine, np.float64), np.array(grid.shape)
    return matrix_from_params(record.motion, affine[:3, :3] @ ((shape - 1) / 2) + affine[:3, 3])


def _planes(grid: GridRecord, decoder: Decoder | None, matrix: Array) -> _Planes:
    """Choose three planes of today's grid, through the middle of the decoder's map; `matrix` is from the decoder's world to today's."""
    from nibabel.orientations import inv_ornt_aff, io_orientation
    from scipy.ndimage import map_coordinates

    affine, shape = np.array(grid.affine, np.float64), tuple(grid.shape or ())
    orientation = io_orientation(affine)
    turned = affine @ inv_ornt_aff(orientation, shape)
    sizes = tuple(shape[int(axis)] for axis in np.argsort(orientation[:, 0]))
    if decoder is None:
        return _Planes(orientation, turned, (sizes[0] // 2, sizes[1] // 2, sizes[2] // 2), None)
    strength = np.abs(decoder.weights).astype(np.float64)
    centre = np.array([np.average(np.arange(n), weights=strength.sum(axis=tuple({0, 1, 2} - {a}))) for a, n in enumerate(strength.shape)])
    to_today = np.linalg.inv(turned) @ matrix @ decoder.grid.affine
    at = np.clip(np.rint(to_today[:3, :3] @ centre + to_today[:3, 3]).astype(int), 0, np.array(sizes) - 1)
    back, weights = np.linalg.inv(to_today), []
    for axis in range(3):
        points = np.stack(np.meshgrid(*(np.array([at[a]]) if a == axis else np.arange(sizes[a]) for a in range(3)), indexing="ij"))
        index = np.tensordot(back[:3, :3], points, 1) + back[:3, 3].reshape(3, 1, 1, 1)
        weights.append(np.squeeze(map_coordinates(decoder.weights.astype(np.float64), index, order=1), axis=axis))
    return _Planes(orientation, turned, (int(at[0]), int(at[1]), int(at[2])), weights)


def _draw(values: list[Array], under: list[Array], sizes_mm: Array, *, signed: bool) -> bytes:
    """Draw three planes beside each other over grey ones, left and right named; return a PNG file."""
    from PIL import Image, ImageDraw

    known = np.concatenate([np.abs(each[np.isfinite(each)]) for each in values])
    top = float(np.percentile(known, 99)) if len(known) else 1.0
    grey = max(float(np.percentile(np.concatenate([each.ravel() for each in under]), 99)), 1e-300)
    parts = []
    for (a, b), own, below in zip(((1, 2), (0, 2), (0, 1)), values, under, strict=True):
        colours = _coloured(own, np.clip(below / grey, 0, 1), top or 1.0, signed=signed)
        picture = Image.fromarray(np.ascontiguousarray(colours.transpose(1, 0, 2)[::-1]))
        shape = (round(own.shape[0] * sizes_mm[a] * PX_PER_MM), round(own.shape[1] * sizes_mm[b] * PX_PER_MM))
        parts.append(picture.resize((max(shape[0], 1), max(shape[1], 1)), Image.Resampling.BILINEAR))
    whole = Image.new("RGB", (sum(part.width for part in parts) + 8, max(part.height for part in parts) + FOOT_PX), "#0b0d10")
    pen, left = ImageDraw.Draw(whole), 0
    for part, (first, second) in zip(parts, (("back", "front"), ("L", "R"), ("L", "R")), strict=True):
        whole.paste(part, (left, (whole.height - FOOT_PX - part.height) // 2))
        pen.text((left + 4, whole.height - FOOT_PX // 2), first, fill="#aeb7c0", font_size=TEXT_PX, anchor="lm")
        pen.text((left + part.width - 4, whole.height - FOOT_PX // 2), second, fill="#aeb7c0", font_size=TEXT_PX, anchor="rm")
        left += part.width + 4
    pen.text(
        (whole.width // 2, whole.height - FOOT_PX // 2),
        f"{'±' if signed else '0 to '}{top:.3g}",
        fill="#d3dae0",
        font_size=TEXT_PX,
        anchor="mm",
    )
    file = io.BytesIO()
    whole.save(file, "png", compress_level=1)
    return file.getvalue()


def _coloured(values: Array, grey: Array, top: float, *, signed: bool) -> NDArray[np.uint8]:
    """Colour a plane (n, m) over a grey one: uint8 (n, m, 3)."""
    known = np.isfinite(values)
    share = np.clip(np.where(known, values, 0.0) / top, -1.0, 1.0)
    base = np.repeat(170.0 * grey[..., np.newaxis], 3, axis=2)
    if signed:
        over, cover = np.where(share[..., np.newaxis] > 0, WARM, COLD).astype(np.float64), np.abs(share) ** 0.7
    else:
        at = np.clip(share, 0.0, 1.0) * (len(SEQUENCE) - 1)
        over = np.stack([np.interp(at, np.arange(len(SEQUENCE)), SEQUENCE[:, channel]) for channel in range(3)], axis=-1)
        cover = np.full(share.shape, 0.9)
    cover = np.where(known, cover, 0.0)[..., np.newaxis]
    return np.asarray(np.clip(cover * over + (1 - cover) * base, 0, 255), np.uint8)
