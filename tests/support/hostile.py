"""Malicious files, thrown into a folder while it is watched."""

from __future__ import annotations

import gzip
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

__all__ = ["HOSTILE", "Thrower"]

EVERY_S = 0.02
KEPT = 120  # of them lie there at a time, the oldest go
SPARSE = 1 << 40  # bytes
DICOM = bytes(128) + b"DICM"


def _fifo(path: Path, _: np.random.Generator) -> None:
    os.mkfifo(path.with_suffix(".dcm"))


def _endless(path: Path, _: np.random.Generator) -> None:
    path.with_suffix(".nii").symlink_to("/dev/zero")


def _outside(path: Path, _: np.random.Generator) -> None:
    path.symlink_to("/")


def _round(path: Path, _: np.random.Generator) -> None:
    path.mkdir()
    (path / "round").symlink_to(path)


def _sparse(path: Path, _: np.random.Generator) -> None:
    with path.with_suffix(".dcm").open("wb") as file:
        file.write(DICOM)
        file.truncate(SPARSE)


def _bomb(path: Path, _: np.random.Generator) -> None:
    path.with_suffix(".nii.gz").write_bytes(b"".join(gzip.compress(bytes(1 << 20)) for _ in range(20)))


def _odd_nifti(path: Path, rng: np.random.Generator) -> None:
    header = rng.integers(0, 256, 352, np.uint8).tobytes()
    path.with_suffix(".nii").write_bytes((348).to_bytes(4, "little") + header[4:344] + b"n+1\0" + header[348:])


def _deep(path: Path, _: np.random.Generator) -> None:
    path.with_suffix(".json").write_text("[" * 100_000)
    path.with_suffix(".nii").write_bytes(b"x" * 400)


def _noise(path: Path, rng: np.random.Generator) -> None:
    path.with_suffix(".dcm").write_bytes(DICOM + rng.integers(0, 256, 5000, np.uint8).tobytes())


def _cut(path: Path, rng: np.random.Generator) -> None:
    """Part of a file of the run itself."""
    files = [other for other in path.parent.glob("*.dcm") if other.is_file() and not other.is_symlink() and other.stat().st_size < 1 << 22]
    if files:
        whole = files[int(rng.integers(len(files)))].read_bytes()
        path.with_suffix(".IMA").write_bytes(whole[: int(rng.integers(0, 1 + len(whole) // 2))])


def _name(path: Path, rng: np.random.Generator) -> None:
    ends = (b"\xff\xfe", b"\x1b[2J\n", "\u202ecod.mcd".encode(), b"'; rm", b"-rf", b"%n%s")
    Path(os.fsdecode(os.fsencode(path) + ends[int(rng.integers(len(ends)))])).write_bytes(b"x" * 300)


def _many(path: Path, _: np.random.Generator) -> None:
    path.mkdir()
    for k in range(40):
        (path / str(k)).touch()


def _again(path: Path, rng: np.random.Generator) -> None:
    """One name, another content each time."""
    (path.parent / "again.dcm").write_bytes(DICOM + rng.integers(0, 256, int(rng.integers(1, 3000)), np.uint8).tobytes())


HOSTILE: tuple[Callable[[Path, np.random.Generator], None], ...] = (
    _fifo, _endless, _outside, _round, _sparse, _bomb, _odd_nifti, _deep, _noise, _cut, _name, _many, _again,
)  # fmt: skip


class Thrower(threading.Thread):
    """Throws one file after the other into a folder until it is stopped.

    Parameters
    ----------
    folder : Path
        Where.
    seed : int
        Of the contents.

    Attributes
    ----------
    thrown : int
        How many.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._rng, self._over = folder, np.random.default_rng(seed), threading.Event()
        self.thrown = 0

    def run(self) -> None:
        """Throw."""
        for number, kind in enumerate(self._kinds()):
            if self._over.wait(EVERY_S):
                return
            kind(self._folder / f"hostile-{number:06d}", self._rng)
            self.thrown += 1
            for old in self._folder.glob(f"hostile-{number - KEPT:06d}*"):
                with suppress(OSError):
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()

    def finish(self) -> None:
        """Throw no more."""
        self._over.set()
        self.join()

    @staticmethod
    def _kinds() -> Iterator[Callable[[Path, np.random.Generator], None]]:
        return itertools.cycle(HOSTILE)
