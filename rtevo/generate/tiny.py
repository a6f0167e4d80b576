"""The built-in tiny pipeline: where it is cached, and how it gets there safely. Its weights are made in `tiny_weights`."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rtevo.errors import ModelError
from rtevo.generate.folder import describe

__all__ = ["TINY_EMBEDDING_SIZE", "TINY_IMAGE_SIZE", "TINY_NAME", "cache_folder", "tiny_pipeline"]

TINY_EMBEDDING_SIZE = 64
TINY_IMAGE_SIZE = (64, 64)
TINY_NAME = "tiny-unclip-v1"
"""Folder name; the number goes up whenever other weights come out."""

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of everything that rtevo can build again: ``$XDG_CACHE_HOME/rtevo`` or ``~/.cache/rtevo`` (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "rtevo"


def tiny_pipeline(on_progress: Callable[[str], None] | None = None, build: Callable[[Path], None] | None = None) -> Path:
    """Give the folder of the tiny pipeline; build it where it is not there yet.

    It is built beside its place and renamed into it, so that nobody ever sees half of it; of several processes that ask at once,
    one builds and the others wait. A damaged one is replaced.

    Parameters
    ----------
    on_progress : callable, optional
        Told, in one line, when it is being built.
    build : callable, optional
        Fills an empty folder with the pipeline. Default: :func:`rtevo.generate.tiny_weights.write`.

    Returns
    -------
    Path

    Raises
    ------
    ModelError
        The cache folder cannot be written.
    """
    folder = cache_folder() / TINY_NAME
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not _is_whole(folder):
                if on_progress:
                    on_progress(f"building the tiny pipeline in {folder} (once, some seconds)")
                _build(folder, build or _default_build)
    except OSError as problem:
        raise ModelError(
            f"{folder}: expected to build the tiny pipeline there (set XDG_CACHE_HOME to a folder with room): {problem}"
        ) from problem
    return folder


def _default_build(folder: Path) -> None:
    from rtevo.generate import tiny_weights

    tiny_weights.write(folder)


def _is_whole(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        describe(folder)
    except ModelError as problem:
        log.warning("tiny pipeline in the cache is damaged: %s", problem)
        return False
    return True


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an advisory lock; the kernel drops it when the process dies."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    """Build beside `folder` and rename; called by whoever holds the lock."""
    for leftover in folder.parent.glob(f"{folder.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        build(fresh)
        fresh.chmod(0o755)
        if folder.exists():
            folder.rename(fresh.with_suffix(".old.tmp"))
        fresh.rename(folder)
    finally:
        for leftover in folder.parent.glob(f"{folder.name}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
