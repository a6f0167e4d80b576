"""Hashes of a model's files: whether they are what was published, and a fingerprint of the whole."""

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
        SHA-256 that its publisher gave, as kept beside the file; empty where none is.
    """

    name: str
    size: int
    sha256: str
    published: str


def hash_files(folder: Path, on_progress: Callable[[str], None] | None = None) -> list[FileHash]:
    """Hash every file of a model and compare with what was published.

    Parameters
    ----------
    folder : Path
        Model folder.
    on_progress : callable, optional
        Told the name of each file before it is read: gigabytes take seconds.

    Returns
    -------
    list of FileHash
        In the order of their names.

    Raises
    ------
    ModelError
        Files differ from what was published, or cannot be read.
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
        raise ModelError(f"{folder}: expected files as they were published, found others: {', '.join(other)}: get them again")
    return found


def fingerprint(files: Iterable[FileHash]) -> str:
    """One SHA-256 for all files of a model, by their names and contents."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda f: f.name):
        total.update(f"{file.name}\0{file.sha256}\n".encode())
    return total.hexdigest()


def published_hash(folder: Path, name: str) -> str:
    """SHA-256 of a file as its publisher gave it, from the traces that a download from the Hugging Face hub leaves; or nothing.

    ``hf download --local-dir`` keeps a record of each file, whose second line is the hash of a large one; the hub's own cache is made
    of links to files that are named by it.
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
    """The files that make up a model: at the top and in its components."""
    for pattern in ("*", "*/*"):
        for file in folder.glob(pattern):
            if file.is_file() and file.suffix in _SUFFIXES and not any(part.startswith(".") for part in file.relative_to(folder).parts):
                yield file


def _listed(folder: Path) -> dict[str, str]:
    """Hashes of a ``SHA256SUMS`` file at the top of the folder (as ``sha256sum`` writes it), by name."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8", errors="replace").splitlines())
    return {
        pair[1].lstrip("*").removeprefix("./"): pair[0].lower() for pair in pairs if len(pair) == 2 and _SHA256.fullmatch(pair[0].lower())
    }
