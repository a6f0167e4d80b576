"""Safe reading of what comes from outside: regular files, JSON of bounded depth, arrays that match their headers, texts to show.

All code that reads from a scanner, a sender, a model folder or a recorded session uses these functions, and skips what they refuse.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
import stat
import subprocess
import threading
import zipfile
from collections.abc import Sequence
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError

__all__ = [
    "copy_inside",
    "copy_regular",
    "load_array",
    "load_arrays",
    "open_regular",
    "parse_json",
    "read_apart",
    "read_exactly",
    "read_json",
    "read_regular",
    "shown",
    "shown_lines",
]

MOST_TEXT = 200  # characters that a message shows of a text from outside
MOST_JSON = 1 << 24  # bytes
MOST_DEPTH = 32  # levels of nested lists and objects
MOST_DIGITS = 19  # of an integer: 64 bits
MOST_ARRAYS = 1 << 32  # bytes of the arrays in one file
MOST_MEMBERS = 4096  # arrays in one file
FREE, TIGHTEST = 1 << 26, 100  # bytes that any array may unpack to; above them, the largest compression ratio


def shown(text: object, most: int | None = MOST_TEXT) -> str:
    """Return a text from outside in a form that is safe to show: control characters and invalid bytes escaped, long texts cut.

    Parameters
    ----------
    text : object
        For example a file name, a sender's text, a reader's error.
    most : int or None
        Maximum number of characters; None: no limit.
    """
    whole = str(text)
    cut = whole if most is None or len(whole) <= most else whole[: most - 3] + "..."
    if cut.isprintable():  # true of nearly all texts
        return cut
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in cut)


def shown_lines(text: object) -> str:
    """Return a message of several lines in a form that is safe to show: :func:`shown` for each line, uncut."""
    return "\n".join(shown(line, None) for line in str(text).split("\n"))


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading, unbuffered; never blocks.

    Raises
    ------
    OSError
        The file cannot be opened, or is not a regular file (a FIFO, a device, a socket, a folder: ``EINVAL``).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return os.fdopen(descriptor, "rb", buffering=0)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises
    ------
    DataError
        The file is larger.
    OSError
        As :func:`open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DataError(f"{shown(os.fspath(path))}: expected at most {most} bytes, found {size}")
        return read_exactly(file, size)


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """Read the bytes that a file has now, even if it grows meanwhile."""
    contents = file.read(size) or b""
    while len(contents) < size and (more := file.read(size - len(contents))):
        contents += more
    return contents


def copy_regular(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy the contents of a regular file to a new file; the path must name the file itself, not a link.

    Raises
    ------
    OSError
        As :func:`open_regular`; or the path is a link (``ELOOP``).
    """
    if os.path.islink(source):
        raise OSError(errno.ELOOP, "a link", os.fspath(source))
    with open_regular(source) as file, open(target, "xb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def copy_inside(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[str]:
    """Copy a folder's regular files and folders to a new folder.

    Returns
    -------
    list of str
        Relative paths that were left out: links, and anything that is neither file nor folder.
    """
    left: list[str] = []
    os.makedirs(target)
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            into = os.path.join(target, entry.name)
            if entry.is_dir(follow_symlinks=False):
                left += [os.path.join(entry.name, inner) for inner in copy_inside(entry.path, into)]
            elif entry.is_file(follow_symlinks=False):
                copy_regular(entry.path, into)
            else:
                left.append(entry.name)
    return left


def parse_json(text: str | bytes, most: int = MOST_JSON, digits: int = MOST_DIGITS) -> Any:
    """Parse JSON of bounded length, depth and number of digits.

    Raises
    ------
    DataError
        The text is not JSON, or exceeds these bounds.
    """
    if len(text) > most:
        raise DataError(f"expected JSON of at most {most} bytes, found {len(text)}")
    try:
        found = json.loads(text, parse_int=partial(_integer, most=digits))
    except RecursionError:
        raise DataError(f"expected JSON of at most {MOST_DEPTH} levels, found more") from None
    except ValueError as error:  # also bad Unicode
        raise DataError(f"expected JSON, found something else ({shown(error)})") from None
    level = [found]
    for _ in range(MOST_DEPTH + 1):
        level = [each for each in level if isinstance(each, (dict, list))]
        if not level:
            return found
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    raise DataError(f"expected JSON of at most {MOST_DEPTH} levels, found more")


def read_json(path: str | os.PathLike[str], most: int = MOST_JSON, digits: int = MOST_DIGITS) -> Any:
    """Read a JSON file; raises as :func:`read_regular` and :func:`parse_json`."""
    try:
        return parse_json(read_regular(path, most), most, digits)
    except DataError as error:
        raise DataError(f"{shown(os.fspath(path))}: {error}") from None


def _integer(digits: str, most: int) -> int:
    if len(digits.lstrip("-")) > most:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def read_apart(command: Sequence[str], timeout_s: float, most: int = MOST_ARRAYS) -> bytes:
    """Run a reader in a process of its own, with a minimal environment, and return its output.

    Raises
    ------
    DataError
        The reader refuses (its last sentence says why), takes too long, or prints more than `most` bytes.
    """
    few = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=few) as process:
        late = threading.Timer(timeout_s, process.kill)
        late.start()
        assert process.stdout is not None
        assert process.stderr is not None
        printed = process.stdout.read(most + 1)
        said = process.stderr.read(1 << 16).decode(errors="replace").strip().splitlines() if len(printed) <= most else []
        if len(printed) > most:
            process.kill()
        code = process.wait()
        on_time = late.is_alive()
        late.cancel()
    if not on_time:
        raise DataError(f"refused: reading took more than {timeout_s:g} s")
    if len(printed) > most:
        raise DataError(f"refused: the reader printed more than {most} bytes")
    if code:
        raise DataError(shown(said[-1]) if said else f"refused: its reader ended with {code}")
    return printed


def load_array(path: str | os.PathLike[str], most: int = MOST_ARRAYS) -> NDArray[Any]:
    """Read a ``.npy`` file of plain numbers whose header matches its size; raises as :func:`load_arrays`."""
    with open_regular(path) as file:
        try:
            with io.BufferedReader(file) as reader:  # type: ignore[type-var]
                return _array(reader, os.fstat(file.fileno()).st_size, most)
        except OSError:
            raise
        except Exception as error:  # NumPy and its tokenizer raise errors of many kinds
            raise DataError(f"{shown(os.fspath(path))}: expected an array, found something else ({shown(error)})") from None


def load_arrays(source: str | os.PathLike[str] | bytes, most: int = MOST_ARRAYS) -> dict[str, NDArray[Any]]:
    """Read the arrays of a ``.npz`` file, given as path or contents; their headers must match their sizes.

    Raises
    ------
    DataError
        The file is not ``.npz``, holds objects, has a wrong shape in a header, or is compressed more tightly than numbers can be.
    OSError
        As :func:`open_regular`.
    """
    where = f"{len(source)} bytes" if isinstance(source, bytes) else shown(os.fspath(source))
    found = {}
    with contextlib.ExitStack() as stack:
        file = io.BytesIO(source) if isinstance(source, bytes) else stack.enter_context(open_regular(source))
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
            members = archive.infolist()
            if sum(member.file_size for member in members) > most or len(members) > MOST_MEMBERS:
                raise ValueError(f"it unpacks to more than {most} bytes or {MOST_MEMBERS} arrays")
            for member in members:
                if member.file_size > max(FREE, TIGHTEST * member.compress_size):
                    raise ValueError(f"{shown(member.filename)} unpacks to {member.file_size} bytes from {member.compress_size}")
                with archive.open(member) as stream:
                    found[member.filename.removesuffix(".npy")] = _array(stream, member.file_size, most)
        except OSError:
            raise
        except Exception as error:  # NumPy, its tokenizer and zipfile raise errors of many kinds
            raise DataError(f"{where}: expected arrays, found something else ({shown(error)})") from None
    return found


def _array(stream: IO[bytes], size: int, most: int) -> NDArray[Any]:
    """Read one array from a stream of `size` bytes, after comparing its header with that size."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version}")
    read_header: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    announced = math.prod(shape) * dtype.itemsize
    if announced != size - stream.tell() or announced > most:
        raise ValueError(f"its header says {shape} of {dtype}, {announced} bytes; it holds {size - stream.tell()}")
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
