"""Read a pickled scikit-learn model without running any of it: a program of its own, ``python -m rtevo.decode.unpickle FILE``.

A pickle is a program. This one may only name what is listed here: numbers and arrays of NumPy, and linear estimators of scikit-learn, of
which not the classes are made but inert stand-ins that hold their fitted attributes. Whatever else a file names ends the reading, with its
name. The process has no more memory, time or files than a model needs, starts no other and writes none.

Printed is one JSON line about the estimators, then an ``.npz`` of their arrays; on refusal a line on standard error, exit status 3.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import os
import pickle
import re
import resource
import sys
import zlib
from typing import Any

import numpy as np
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyUnpickler

__all__ = ["ESTIMATORS", "REFUSED", "read"]

REFUSED = 3
"""Exit status of a refusal."""
MEMORY_BYTES, CPU_S, FILE_BYTES = 4 << 30, 60, 1 << 30
MOST_STEPS, MOST_TEXT = 64, 1000  # estimators in a chain, and characters of each one's description
_OBJECT = np.dtype(object)
_OF_ARRAYS = {"subclass", "shape", "order", "dtype", "allow_mmap", "numpy_array_alignment_bytes"}
ESTIMATORS = frozenset(
    {
        "Pipeline", "StandardScaler", "PCA", "LogisticRegression", "LogisticRegressionCV", "Ridge", "RidgeCV",
        "RidgeClassifier", "RidgeClassifierCV", "LinearRegression", "LinearSVC", "LinearSVR", "LinearDiscriminantAnalysis", "Lasso",
        "ElasticNet",
    }
)  # fmt: skip
"""Classes of scikit-learn that are read. A grid search is not: it brings scorers and folds; save its ``best_estimator_``."""
_KEPT = (
    "coef_", "intercept_", "classes_", "mean_", "scale_", "components_", "explained_variance_", "whiten", "with_mean", "with_std",
)  # fmt: skip
_SHOWN = ("_sklearn_version",)
_OPENERS: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open), (b"\x5d\0\0", lzma.open),
)  # fmt: skip
_BROKEN = (
    pickle.UnpicklingError, EOFError, MemoryError, RecursionError, ValueError, TypeError, LookupError, AttributeError, OSError,
    ArithmeticError, AssertionError, zlib.error, lzma.LZMAError,
)  # fmt: skip


class _Refused(Exception):  # noqa: N818 - the way out, reported as a refusal
    """The file asks for something that is not allowed."""


class _Inert:
    """Stands in for an object of a class that is only read."""

    name = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}


class _NdArray:
    """Stands in for NumPy's class of arrays, which files name and nobody here calls."""

    def __new__(cls, *_: Any, **__: Any) -> _NdArray:
        raise _Refused("an array not written by NumPy or joblib")


class _Array(NumpyArrayWrapper):  # type: ignore[misc]
    """joblib's array in a file, of plain numbers, or a plain pickle of an array of objects."""

    def read(self, unpickler: Any, *_: Any) -> Any:
        shape = getattr(self, "shape", None)
        if not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise _Refused(f"an array of shape {shape!r:.40}")
        if isinstance(self.dtype, np.dtype) and self.dtype == _OBJECT:
            return np.asarray(type(unpickler)(unpickler.file_handle).load(), object).reshape(shape)
        if math.prod(shape) * _plain(self.dtype).itemsize > len(unpickler.file_handle.getbuffer()) - unpickler.file_handle.tell():
            raise _Refused(f"an array of shape {shape!r:.40} that is longer than the file")
        return super().read_array(unpickler, *_)


def _plain(dtype: Any) -> np.dtype[Any]:
    """Return a dtype that was found to be of plain numbers, or text."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufcSU" or dtype.names is not None or dtype.subdtype is not None:
        raise _Refused(f"numbers of type {dtype!r:.40}")
    return dtype


def _dtype(spec: Any, *_: Any) -> np.dtype[Any]:
    """Make a dtype by the name that NumPy writes; what a file says beside that is never put into it (see :func:`_dtype_state`)."""
    if isinstance(spec, type) and issubclass(spec, np.generic):
        return np.dtype(spec)
    if not isinstance(spec, str) or not re.fullmatch(r"[<>=|]?(O8?|[biufcSU?]\d{0,6})", spec):
        raise _Refused(f"numbers of type {spec!r:.40}")
    return _OBJECT if spec.lstrip("<>=|").startswith("O") else _plain(np.dtype(spec))


def _dtype_state(dtype: np.dtype[Any], state: Any) -> np.dtype[Any]:
    """Return the dtype that a file's state means, of which only the order of bytes may be new: the rest could lie about memory."""
    if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(x is not None for x in state[2:5]):
        raise _Refused(f"numbers of type {state!r:.40}")
    return dtype if dtype == _OBJECT or state[1] == "|" else dtype.newbyteorder(state[1])


def _check_state(array: np.ndarray[Any, Any], state: Any) -> None:
    """Refuse an array's state unless it is whole numbers of a plain type, or a list of objects."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[1], tuple):
        raise _Refused(f"an array of {state!r:.40}")
    _, shape, dtype, _, stored = state
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise _Refused(f"an array of shape {shape!r:.40}")
    if isinstance(dtype, np.dtype) and dtype == _OBJECT:
        if not isinstance(stored, list) or len(stored) != math.prod(shape):
            raise _Refused("an array of objects without a list of objects")
    elif not isinstance(stored, (bytes, str)) or (isinstance(stored, bytes) and len(stored) != math.prod(shape) * _plain(dtype).itemsize):
        raise _Refused(f"an array of shape {shape!r:.40} with another number of values")
    elif isinstance(stored, str):
        _plain(dtype)


def _array(subtype: Any, shape: Any, dtype: Any) -> Any:
    if subtype is not _NdArray:
        raise _Refused(f"an array of type {subtype!r}")
    if shape != (0,):
        raise _Refused(f"an array of shape {shape!r:.40} before its numbers")
    return np.ndarray.__new__(np.ndarray, (0,), "b")


def _scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(data, _plain(dtype), 1)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str, *_: Any) -> Any:
    return np.frombuffer(data, _plain(dtype)).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstructor(kind: Any, base: Any, state: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, _Inert)):
        raise _Refused(f"an object of type {kind!r}")
    return kind()


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how old protocols write bytes, whatever encoding they claim


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _dtype,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("copy_reg", "_reconstructor"): _reconstructor,
    ("builtins", "object"): _Inert,
    ("__builtin__", "object"): _Inert,
    ("_codecs", "encode"): _bytes,
    ("builtins", "bytes"): bytes,
    ("__builtin__", "bytes"): bytes,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Array,
    **{("numpy", name): getattr(np, name) for name in ("float64", "float32", "int64", "int32", "bool_", "str_")},
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = _array
    _ALLOWED[f"{_core}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(NumpyUnpickler):  # type: ignore[misc]
    """joblib's unpickler, which also reads plain pickles, with names from the list only."""

    dispatch = NumpyUnpickler.dispatch.copy()

    def __init__(self, handle: Any) -> None:
        super().__init__("", handle, ensure_native_byte_order=True)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.split(".")[0] == "sklearn" and name in ESTIMATORS:
            return type(name, (_Inert,), {"name": name})
        raise _Refused(f"{module}.{name}")

    def load_build(self) -> None:
        """Set the state of an object that may have one: a stand-in, an array of plain numbers, or joblib's place-holder of an array."""
        state, built = self.stack[-1], self.stack[-2]
        if isinstance(built, np.dtype):
            self.stack.pop()
            self.stack[-1] = _dtype_state(built, state)
            return
        if isinstance(built, _Array):
            if not isinstance(state, dict) or not state.keys() <= _OF_ARRAYS:
                raise _Refused(f"joblib's array with {state!r:.40}")
        elif isinstance(built, np.ndarray):
            _check_state(built, state)
        elif not isinstance(built, _Inert):
            raise _Refused(f"a state of {built!r:.40}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def read(content: bytes) -> tuple[list[dict[str, Any]], dict[str, np.ndarray[Any, Any]]]:
    """Read a model.

    Parameters
    ----------
    content : bytes
        Of the file: a pickle or a joblib file, compressed or not.

    Returns
    -------
    steps : list of dict
        Of each estimator of the chain: ``name``, and its attributes that are no arrays.
    arrays : dict of str to ndarray
        Named ``STEP.ATTRIBUTE``.
    """
    steps: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for number, step in enumerate(_chain(_Unpickler(io.BytesIO(_unpacked(content))).load())):
        about: dict[str, Any] = {"name": step.name}
        for key in (*_KEPT, *_SHOWN):
            value = step.state.get(key)
            if isinstance(value, (bool, str)):
                about[key] = value if isinstance(value, bool) else value[:MOST_TEXT]
            elif value is not None:
                array = np.asarray(value)
                arrays[f"{number}.{key}"] = array.astype(str) if array.dtype.hasobject else array
        if sum(array.nbytes for array in arrays.values()) > FILE_BYTES:
            raise _Refused(f"arrays of more than {FILE_BYTES >> 20} MB")
        steps.append(about)
    return steps, arrays


def _chain(model: Any, depth: int = 0) -> list[_Inert]:
    """Lay out nested estimators in the order in which data pass them."""
    if not isinstance(model, _Inert) or not model.name:
        raise _Refused(f"a {type(model).__name__} (expected a fitted estimator of scikit-learn)")
    if model.name != "Pipeline":
        return [model]
    found: list[_Inert] = []
    for step in model.state.get("steps", ()):
        if step[1] not in (None, "passthrough"):
            found += _chain(step[1], depth + 1)
        if len(found) > MOST_STEPS or depth > MOST_STEPS:
            raise _Refused(f"a chain of more than {MOST_STEPS} estimators")
    return found


def _unpacked(content: bytes) -> bytes:
    """Undo compression, as far as a model may be large."""
    for magic, opener in _OPENERS:
        if content.startswith(magic):
            with opener(io.BytesIO(content)) as file:
                return _limited(file.read(FILE_BYTES + 1))
    if content[:1] == b"\x78" and content[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        return _limited(zlib.decompressobj().decompress(content, FILE_BYTES + 1))
    return _limited(content)


def _limited(content: bytes) -> bytes:
    if len(content) > FILE_BYTES:
        raise _Refused(f"more than {FILE_BYTES >> 20} MB")
    return content


def _confine() -> None:
    """Limit memory, time and files to what reading needs."""
    for what, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))


def main() -> int:
    """Read the file that the command line names."""
    with open(sys.argv[1], "rb") as file:
        content = file.read(FILE_BYTES + 1)
    out = os.fdopen(os.dup(1), "wb")
    _confine()
    try:
        steps, arrays = read(content)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        out.write(json.dumps(steps).encode() + b"\n" + buffer.getvalue())
        out.flush()
    except _Refused as refused:
        sys.stderr.write(f"refused: {refused}\n")
        return REFUSED
    except _BROKEN as problem:
        sys.stderr.write(f"refused: not a model that can be read ({type(problem).__name__}: {problem})\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
