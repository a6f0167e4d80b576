"""Runs an engine of TensorRT or TensorRT for RTX with device pointers and a stream.

Differences between the two, and between versions, are read from the module's attributes, never from its version.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["Runner", "RunnerError", "logger_of"]


class RunnerError(Exception):
    """An engine cannot be loaded or run; the message ends with TensorRT's own."""


@cache
def logger_of(trt: Any) -> Any:
    """The only logger of a module in this process: TensorRT keeps its first logger.

    Its `errors` collects TensorRT's reports for the message of a failure; each new operation clears it. Its `tell` is called with each
    report at once.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.tell: Callable[[str], None] = lambda _: None

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(text)
                self.tell(f"TensorRT: {text}")

        @property
        def reason(self) -> str:
            """TensorRT's reports since `errors` was cleared."""
            return "; ".join(self.errors) or "TensorRT gives no reason"

    return Logger()


class Runner:
    """One engine with static shapes.

    Parameters
    ----------
    plan : bytes
        The serialised engine.
    trt : module
        ``tensorrt`` or ``tensorrt_rtx``.
    cache : bytes
        Result of :meth:`runtime_cache` on this GPU with this driver: TensorRT for RTX compiles its kernels when an engine is loaded, and
        finds them in the cache. A cache that does not fit is ignored.

    Attributes
    ----------
    inputs, outputs : dict of str to (tuple of int, str)
        Shape and dtype (``float16``, ``float32``, ``int32``, ``int64``) of each.

    Raises
    ------
    RunnerError
        TensorRT does not accept the plan: it was built by another version or for another GPU, or is damaged.
    """

    def __init__(self, plan: bytes, trt: Any, cache: bytes = b"") -> None:
        self._logger = logger_of(trt)
        self._logger.errors.clear()
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime and self._runtime.deserialize_cuda_engine(plan)
        if not engine:
            raise RunnerError(f"{trt.__name__} {trt.__version__} does not accept this engine: {self._logger.reason}")
        self._engine, self._cache = engine, None
        settings: Any = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
        if hasattr(settings, "create_runtime_cache"):
            self._cache = settings.create_runtime_cache()
            if cache:
                self._cache.deserialize(cache)
            settings.set_runtime_cache(self._cache)
        self._context = engine.create_execution_context() if settings is None else engine.create_execution_context(settings)
        if not self._context:
            raise RunnerError(f"{trt.__name__} cannot make an execution context: {self._logger.reason}")
        self.inputs: dict[str, tuple[tuple[int, ...], str]] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], str]] = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            side = self.inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else self.outputs
            side[name] = tuple(engine.get_tensor_shape(name)), self._dtype(engine.get_tensor_dtype(name))

    @staticmethod
    def _dtype(dtype: Any) -> str:
        names = {"HALF": "float16", "FLOAT": "float32", "INT32": "int32", "INT64": "int64", "BF16": "bfloat16"}
        return names.get(str(dtype).rpartition(".")[2], str(dtype))

    def bind(self, name: str, pointer: int) -> None:
        """Set a tensor's address on the device, for all later runs."""
        if name not in self.inputs and name not in self.outputs:
            raise RunnerError(f"engine: expected one of {', '.join([*self.inputs, *self.outputs])}, got {name!r}")
        self._done(self._context.set_tensor_address(name, pointer), f"the address of {name!r} was refused")

    def run(self, stream: int) -> None:
        """Queue one run on a CUDA stream, without waiting for it."""
        self._done(self._context.execute_async_v3(stream), "a run could not be queued")

    def capturable(self, stream: int) -> bool:
        """Return whether runs on a stream may be captured in a CUDA graph; True if TensorRT cannot be asked."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(stream))

    def runtime_cache(self) -> bytes:
        """Return the kernels compiled so far, for the next start; empty if the module compiles none at run time."""
        return b"" if self._cache is None else bytes(memoryview(self._cache.serialize()))

    def _done(self, good: bool, what: str) -> None:
        if not good:
            raise RunnerError(f"engine: {what}: {self._logger.reason}")
