"""Runs a TensorRT engine by device pointers and a stream: needs nothing of torch but the pointers.

Imports nothing of this project and nothing newer than Python 3.10, so that an interpreter with TensorRT and without the rest can load
this file alone (``build/builder.py`` does, to verify what it has built). The calls are those that TensorRT 8.6 and 10 share.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Runner", "RunnerError"]


class RunnerError(Exception):
    """An engine cannot be loaded or run."""


class Runner:
    """One engine with static shapes.

    Parameters
    ----------
    plan : bytes
        The serialised engine.
    trt : module
        ``tensorrt``.

    Attributes
    ----------
    inputs, outputs : dict of str to (tuple of int, str)
        Shape and dtype (``float16``, ``float32``, ``int32``, ``int64``) of each.

    Raises
    ------
    RunnerError
        TensorRT does not take the plan: it was built by another version or for another GPU, or it is damaged.
    """

    def __init__(self, plan: bytes, trt: Any) -> None:
        self._trt, self._logger = trt, trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RunnerError(
                f"TensorRT {trt.__version__} does not take this engine: it was built by another version, for another GPU, or is damaged"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RunnerError("TensorRT cannot make an execution context: the GPU's memory does not suffice")
        self.inputs: dict[str, tuple[tuple[int, ...], str]] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], str]] = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            side = self.inputs if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else self.outputs
            side[name] = tuple(self._engine.get_tensor_shape(name)), self._dtype(self._engine.get_tensor_dtype(name))

    def _dtype(self, dtype: Any) -> str:
        names = {"HALF": "float16", "FLOAT": "float32", "INT32": "int32", "INT64": "int64", "BF16": "bfloat16"}
        return names.get(str(dtype).rpartition(".")[2], str(dtype))

    def bind(self, name: str, pointer: int) -> None:
        """Say where a tensor lies on the device; it stays there for all later runs."""
        if name not in self.inputs and name not in self.outputs:
            raise RunnerError(f"engine: expected one of {', '.join([*self.inputs, *self.outputs])}, got {name!r}")
        if not self._context.set_tensor_address(name, pointer):
            raise RunnerError(f"engine: TensorRT refused the address of {name!r}")

    def run(self, stream: int) -> None:
        """Queue one run on a CUDA stream; does not wait for it."""
        if not self._context.execute_async_v3(stream):
            raise RunnerError("engine: TensorRT could not queue a run (see its message above)")
