"""Hashes of a model's files: comparison with the published ones, and a fingerprint of the whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from rtevo.errors import ModelError

__all__ = ["FileHash", "fingerprint", "hash_files", "published_hash"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIXES = {".json", ".txt", ".safetensors", ".bin"}
_DOWNLOAD_RECORDS = Path(".cache") / "huggingface" / "download"


@dataclass(frozen=True)
class FileHash:
    """One file of a model folder.

    Parameters
    ----------
    name : str
        Path inside the folder, with ``/``.
    size : int
        Bytes.
    sha256 : str
    published : str
        The publisher's SHA-256, as kept beside the file; empty: none.
    """

    name: str
    size: int
    sha256: str
    published: str


def hash_files(folder: Path, on_progress: Callable[[str], None] | None = None) -> list[FileHash]:
    """Hash every file of a model, and compare with the published hashes.

    Parameters
    ----------
    folder : Path
        Model folder.
    on_progress : callable, optional
        Called with the name of each file before it is read: gigabytes take seconds.

    Returns
    -------
    list of FileHash
        In the order of their names.

    Raises
    ------
    ModelError
        Files differ from the published ones, or cannot be read.
    """
    listed = _listed(folder)
    found: list[FileHash] = []
    for file in sorted(_files(folder)):
        name = file.relative_to(folder).as_posix()
        if on_progress:
            on_progress(name)
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise ModelError(f"{file}: expected a file that can be read: {problem}") from problem
        found.append(FileHash(name, file.stat().st_size, digest, listed.get(name) or published_hash(folder, name)))
    other = [f"{f.name} ({f.sha256[:12]}, published {f.published[:12]})" for f in found if f.published and f.published != f.sha256]
    if other:
        raise ModelError(f"{folder}: expected the published files, found others: {', '.join(other)}: download them again")
    return found


def fingerprint(files: Iterable[FileHash]) -> str:
    """Return one SHA-256 for all files of a model, from their names and contents."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        total.update(f"{file.name}\0{file.sha256}\n".encode())
    return total.hexdigest()


def published_hash(folder: Path, name: str) -> str:
    """Return the publisher's SHA-256 of a file, from the records of a download from the Hugging Face hub; or an empty text.

    ``hf download --local-dir`` keeps a record of each file, whose second line is the hash if the file is large; the hub's own cache
    consists of links to files that are named by the hash.
    """
    record = folder / _DOWNLOAD_RECORDS / f"{name}.metadata"
    if record.is_file():
        lines = record.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > 1 and _SHA256.fullmatch(lines[1].strip()):
            return lines[1].strip()
    file = folder / name
    if file.is_symlink() and _SHA256.fullmatch(file.readlink().name):
        return file.readlink().name
    return ""


def _files(folder: Path) -> Iterable[Path]:
    """Return the files of a model: at the top and in its components."""
    for pattern in ("*", "*/*"):
        for file in folder.glob(pattern):
            if file.is_file() and file.suffix in _SUFFIXES and not any(part.startswith(".") for part in file.relative_to(folder).parts):
                yield file


def _listed(folder: Path) -> dict[str, str]:
    """Return the hashes in a ``SHA256SUMS`` file at the top of the folder (as from ``sha256sum``), by name."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8", errors="replace").splitlines())
    return {
        pair[1].lstrip("*").removeprefix("./"): pair[0].lower() for pair in pairs if len(pair) == 2 and _SHA256.fullmatch(pair[0].lower())
    }
