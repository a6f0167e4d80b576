"""ONNX to an engine of TensorRT or TensorRT for RTX: one builder for both, which checks the module's attributes, not its version.

``build/engine.py`` runs it in a process of its own, so that a crash of TensorRT ends nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rtevo.errors import ModelError
from rtevo.generate.engines import write
from rtevo.generate.runner import logger_of
from rtevo.generate.tensorrt import portable

__all__ = ["build", "known_capabilities", "main"]

GIB = 1 << 30

Tell = Callable[[str], None]


def known_capabilities(trt: Any) -> list[str]:
    """Return the compute capabilities for which a module builds portable engines, ``"8.9"``."""
    names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM") and name[2:].isdecimal()]
    return [f"{number[:-1]}.{number[-1]}" for number in sorted((name[2:] for name in names), key=int)]


def build(
    trt: Any, onnx: Path, plan: Path, tell: Tell, *, capabilities: Sequence[str] = (), level: int = 3, workspace_gib: float = 8.0,
    timing_cache: Path | None = None,
) -> None:  # fmt: skip
    """Build one engine, strongly typed: with the precisions of the ONNX file.

    Parameters
    ----------
    trt : module
        ``tensorrt`` or ``tensorrt_rtx``.
    onnx, plan : Path
        The file to read, and the file to write, whole or not at all.
    tell : callable
        Called with each step of TensorRT.
    capabilities : sequence of str
        Compute capabilities, if the module's engines are portable.
    level : int
        Effort, 0 to 5.
    workspace_gib : float
        GPU memory that kernels may use, GiB.
    timing_cache : Path, optional
        Kernel times of earlier builds; not for modules that time no kernels.

    Raises
    ------
    ModelError
        TensorRT cannot read the file or build the engine; the message ends with its reason.
    """
    logger, name = logger_of(trt), f"{trt.__name__} {trt.__version__}"
    logger.errors.clear()
    logger.tell = tell
    builder = trt.Builder(logger)
    if not builder:
        raise ModelError(f"{name} cannot build here: {logger.reason}")
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # absent if it is the only mode
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ModelError(f"{name} cannot read {onnx.name}: {said or logger.reason}")
    for i in range(network.num_layers):  # no kernel supports every shape: several may replace one
        attention = getattr(network.get_layer(i), "attention", None)
        if attention is not None:
            attention.decomposable = True
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace_gib * GIB))
    config.builder_optimization_level = level
    config.progress_monitor = _monitor(trt, tell)
    if portable(trt):
        config.num_compute_capabilities = len(capabilities)
        for i, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), i)
    elif timing_cache is not None:
        kept = timing_cache.read_bytes() if timing_cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(kept), False):
            tell("timing cache: belongs to another TensorRT or GPU; starting a new one")
            config.set_timing_cache(config.create_timing_cache(b""), False)
    built = builder.build_serialized_network(network, config)
    if built is None:
        memory = "; close other programs on the GPU, or lower --workspace-gib" if "memory" in logger.reason else ""
        raise ModelError(f"{name} could not build {onnx.name}: {logger.reason}{memory}")
    write(plan, bytes(memoryview(built)))
    if timing_cache is not None and not portable(trt):
        write(timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))


def _monitor(trt: Any, tell: Tell) -> Any:
    """Reports the phases of a build; at most one line a second."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._told = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() > self._told + 1:
                self._told = time.monotonic()
                tell(f"{phase_name}: {step + 1} of {self._steps.get(phase_name, 0)}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def main(arguments: list[str] | None = None) -> int:
    """Build one engine, print TensorRT's steps and at last any error, and return the exit status."""
    parser = argparse.ArgumentParser(prog="builder.py", description="Build one engine from ONNX.")
    parser.add_argument("module")
    parser.add_argument("onnx", type=Path)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--capability", nargs="+", default=[])
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--workspace-gib", type=float, default=8.0)
    parser.add_argument("--timing-cache", type=Path)
    options = parser.parse_args(arguments)
    try:
        build(
            importlib.import_module(options.module), options.onnx, options.plan, lambda text: print(text, flush=True),
            capabilities=options.capability, level=options.level, workspace_gib=options.workspace_gib, timing_cache=options.timing_cache,
        )  # fmt: skip
    except (ModelError, ImportError) as problem:
        print(problem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
