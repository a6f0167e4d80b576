"""A Dask worker's part of a session: it loads the session's model once, and paints; bytes in, bytes out.

Requests and answers are a header (JSON, preceded by its length) and arrays as they lie in memory. Errors are texts in the answer, because
an exception would be pickled.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import DataError, ModelError, RtevoError

__all__ = ["pack", "paint", "prepare", "unpack"]

MOST_HEADER = 1 << 16

_lock = threading.Lock()  # one picture at a time, however many threads the worker has
_loaded: dict[str, Any] = {}


def pack(header: Mapping[str, Any], *arrays: NDArray[Any]) -> bytes:
    """Return a header and arrays as bytes."""
    head = json.dumps(header).encode()
    return b"".join([struct.pack("<I", len(head)), head, *(np.ascontiguousarray(array).tobytes() for array in arrays)])


def unpack(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the header, and the bytes of the arrays.

    Raises
    ------
    DataError
        The bytes do not begin with a header.
    """
    try:
        (size,) = struct.unpack_from("<I", data)
        found = json.loads(bytes(data[4 : 4 + size])) if size <= MOST_HEADER else None
    except (struct.error, ValueError, RecursionError, TypeError) as problem:
        raise DataError(f"expected a header of JSON, found something else: {problem}") from None
    if not isinstance(found, dict):
        raise DataError("expected a header of JSON, found something else")
    return found, memoryview(data)[4 + size :]


def prepare(request: bytes) -> bytes:
    """Load the model of a request, unless it is loaded; answer with the generator's `description`, or `error`."""
    settings, _ = unpack(request)
    with _lock:
        try:
            return pack({"description": _generator(settings["settings"], settings["model"]).description})
        except (RtevoError, RuntimeError, ValueError) as problem:
            return pack({"error": str(problem)})


def paint(request: bytes) -> bytes:
    """Paint one embedding.

    Parameters
    ----------
    request : bytes
        Header with `settings`, `model` and `seed`; the embedding, float32 (e,).

    Returns
    -------
    bytes
        Header with `shape` (H, W, 3) and `painted_ns`, the time taken; pixels, uint8 (H, W, 3), and their re-encoding, float32 (e,).
        Or a header with `error`.
    """
    header, rest = unpack(request)
    embedding = np.frombuffer(rest, np.float32)[None]
    with _lock:
        try:
            generator = _generator(header["settings"], header["model"])
            began = time.monotonic_ns()
            (painted,) = generator.paint(embedding, np.array([header["seed"]], np.uint64))
        except (RtevoError, RuntimeError, ValueError) as problem:
            return pack({"error": str(problem)})
        answer = {"shape": painted.pixels.shape, "painted_ns": time.monotonic_ns() - began}
    return pack(answer, painted.pixels, painted.embedding.astype(np.float32))


def _generator(settings: dict[str, Any], model: str) -> Any:
    """Return the generator for some settings, loaded, verified and warm."""
    from rtevo.generate import GeneratorSettings, load
    from rtevo.generate.hashes import fingerprint, hash_files
    from rtevo.generate.tiny import TINY_UNCLIP

    wanted = json.dumps([settings, model], sort_keys=True)
    if wanted not in _loaded:
        while _loaded:  # of an earlier session
            _loaded.popitem()[1].close()
        path = Path(model) if model else TINY_UNCLIP
        own = fingerprint(hash_files(path))
        if settings["fingerprint"] and own != settings["fingerprint"]:
            raise ModelError(
                f"{path}: expected the session's model {settings['fingerprint'][:12]}, found {own[:12]}: copy the model here again"
            )
        tiny_vae = Path(settings["tiny_vae"]) if settings["tiny_vae"] else None
        generator = load(GeneratorSettings(**{**settings, "model_path": path, "tiny_vae": tiny_vae}))
        generator.warm_up()
        _loaded[wanted] = generator
    return _loaded[wanted]
