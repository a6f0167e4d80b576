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
import os
import pickle
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


class _Refused(Exception):  # noqa: N818 - the way out, told as a refusal
    """The file asks for something that is not allowed."""


class _Inert:
    """Stands in for an object of a class that is only read."""

    name = ""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}


class _Array(NumpyArrayWrapper):  # type: ignore[misc]
    """joblib's array in a file, without its way back to plain pickle for arrays of objects."""

    def read_array(self, unpickler: Any, *rest: Any) -> Any:
        if self.dtype.hasobject:
            return np.asarray(type(unpickler)(unpickler.file_handle).load(), object).reshape(self.shape)
        return super().read_array(unpickler, *rest)


def _array(subtype: Any, shape: Any, dtype: Any) -> Any:
    if subtype is not np.ndarray:
        raise _Refused(f"an array of type {subtype!r}")
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise _Refused(f"a number of type {dtype!r}")
    return np.frombuffer(data, dtype, 1)[0]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str, *_: Any) -> Any:
    return np.frombuffer(data, dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstructor(kind: Any, base: Any, state: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, _Inert)):
        raise _Refused(f"an object of type {kind!r}")
    return kind()


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how old protocols write bytes, whatever encoding they claim


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
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

    def __init__(self, handle: Any) -> None:
        super().__init__("", handle, ensure_native_byte_order=True)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module.split(".")[0] == "sklearn" and name in ESTIMATORS:
            return type(name, (_Inert,), {"name": name})
        raise _Refused(f"{module}.{name}")


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
                about[key] = value
            elif value is not None:
                array = np.asarray(value)
                arrays[f"{number}.{key}"] = array.astype(str) if array.dtype.hasobject else array
        steps.append(about)
    return steps, arrays


def _chain(model: Any) -> list[_Inert]:
    """Lay out nested estimators in the order in which data pass them."""
    if not isinstance(model, _Inert) or not model.name:
        raise _Refused(f"a {type(model).__name__} (expected a fitted estimator of scikit-learn)")
    if model.name == "Pipeline":
        return [part for step in model.state.get("steps", ()) if step[1] not in (None, "passthrough") for part in _chain(step[1])]
    return [model]


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
    """Take away what reading does not need."""
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
