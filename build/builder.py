"""ONNX to a TensorRT engine, and the engine's outputs on given inputs. Needs TensorRT, NumPy and cuda-python; nothing else.

``build/engine.py`` runs this in a process of its own, by default with its own interpreter; another one may be named, so that TensorRT need
not be installed beside torch. Works with TensorRT 8.6 and with 10 and later, and from Python 3.10 on. The last line printed is JSON.
``--picture`` paints a whole picture with engines that are there, beside the one that torch has painted, and times them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

GIB = 1 << 30


class BuildError(Exception):
    """The engine cannot be built; the message says what TensorRT said."""


def tell(text: str) -> None:
    """Say, at once, what is being done."""
    print(text, flush=True)


def make_logger(trt: Any, errors: list[str]) -> Any:
    """A logger that keeps errors, for the message of a failure."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                errors.append(text)
                tell(f"TensorRT: {text}")

    return Logger()


def make_network(trt: Any, builder: Any) -> tuple[Any, bool]:
    """An empty network with static batch; strongly typed (precisions are the ONNX file's) where TensorRT has that: from 10 on."""
    kinds = trt.NetworkDefinitionCreationFlag
    if int(trt.__version__.split(".")[0]) >= 10:
        return builder.create_network(1 << int(kinds.STRONGLY_TYPED)), True
    return builder.create_network(1 << int(kinds.EXPLICIT_BATCH)), False


def configure(trt: Any, builder: Any, typed: bool, options: argparse.Namespace) -> Any:
    """The builder's configuration: precision, memory, effort, kernels, timing cache, progress."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * GIB))
    config.builder_optimization_level = options.level
    if not typed and options.precision == "float16":
        config.set_flag(trt.BuilderFlag.FP16)
    if options.own_kernels:
        sources = trt.TacticSource
        config.set_tactic_sources((1 << int(sources.EDGE_MASK_CONVOLUTIONS)) | (1 << int(sources.JIT_CONVOLUTIONS)))
    kept = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
    cache = config.create_timing_cache(kept)
    if not config.set_timing_cache(cache, False):
        tell("timing cache: it is another TensorRT's or another GPU's, starting a new one")
        config.set_timing_cache(config.create_timing_cache(b""), False)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = make_monitor(trt)
    return config


def make_monitor(trt: Any) -> Any:
    """Tells the phases of a build; a new line at most every second."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._told = 0.0

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


class Heartbeat:
    """Says every ten seconds that a build is still going on: TensorRT 8 tells no progress."""

    def __enter__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(time.monotonic(),), daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self, started: float) -> None:
        while not self._done.wait(10):
            tell(f"building for {time.monotonic() - started:.0f} s")


def build(trt: Any, options: argparse.Namespace) -> None:
    """Build one engine and write its plan and the timing cache, each whole or not at all."""
    errors: list[str] = []
    logger = make_logger(trt, errors)
    builder = trt.Builder(logger)
    network, typed = make_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    tell(f"TensorRT {trt.__version__}: reading {options.onnx.name}")
    if not parser.parse_from_file(str(options.onnx)):
        said = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BuildError(f"TensorRT {trt.__version__} cannot read {options.onnx.name}: {said}")
    config = configure(trt, builder, typed, options)
    tell(f"building {options.plan.name} (level {options.level}; minutes)")
    with Heartbeat():
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        memory = "; the GPU's memory may not suffice: close other programs, or lower --workspace-gib" if "memory" in str(errors) else ""
        raise BuildError(
            f"TensorRT {trt.__version__} could not build {options.onnx.name}: {'; '.join(errors) or 'it does not say why'}{memory}"
        )
    write(options.plan, bytes(memoryview(plan)))
    write(options.timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(data)
    os.replace(partial, path)


def load_runner() -> Any:
    """The project's pointer-level runner, from its file: this interpreter need not have the rest of the project."""
    file = Path(__file__).resolve().parents[1] / "rtevo" / "generate" / "runner.py"
    spec = importlib.util.spec_from_file_location("rtevo_runner", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rtevo_runner"] = module
    spec.loader.exec_module(module)
    return module.Runner


class Device:
    """CUDA memory and a stream through cuda-python."""

    def __init__(self) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError:
            from cuda import cudart as runtime
        self._cuda = runtime
        self.stream = int(self._call("cudaStreamCreate"))

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *found = getattr(self._cuda, name)(*arguments)
        if int(error) != 0:
            raise BuildError(f"{name}: CUDA error {int(error)} ({error}); does the driver suit this CUDA (nvidia-smi)?")
        return found[0] if found else None

    def put(self, array: np.ndarray) -> int:
        """Copy an array to the device; gives its address."""
        pointer = int(self._call("cudaMalloc", array.nbytes))
        self._call("cudaMemcpy", pointer, array.ctypes.data, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)
        return pointer

    def fill(self, pointer: int, array: np.ndarray) -> None:
        """Copy an array over one of the same size."""
        self._call("cudaMemcpy", pointer, array.ctypes.data, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def seconds(self, queue: Any) -> float:
        """How long the device takes for what is queued."""
        self._call("cudaStreamSynchronize", self.stream)
        started = time.perf_counter()
        queue()
        self._call("cudaStreamSynchronize", self.stream)
        return time.perf_counter() - started

    def get(self, pointer: int, like: np.ndarray) -> np.ndarray:
        """Wait for the stream and copy an array back."""
        self._call("cudaStreamSynchronize", self.stream)
        found = np.empty_like(like)
        self._call("cudaMemcpy", found.ctypes.data, pointer, found.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        return found


class Engine:
    """An engine with memory of its own for its one output; what it is given lies where :meth:`Device.put` has put it."""

    def __init__(self, trt: Any, plan: bytes, device: Any, runner_class: Any) -> None:
        self._device, self._runner = device, runner_class(plan, trt)
        ((name, (shape, dtype)),) = self._runner.outputs.items()
        self._poison = np.full(shape, np.nan, dtype)
        self._places = {name: device.put(self._poison)}
        self._output = name
        self._runner.bind(name, self._places[name])

    def __call__(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """Run it on inputs, by name; inputs left out stay as they were. The output is poisoned before."""
        for name, array in given.items():
            wanted, kind = self._runner.inputs[name]
            array = np.ascontiguousarray(array, kind)
            if array.shape != wanted:
                raise BuildError(f"engine input {name}: expected shape {wanted}, got {array.shape}")
            if name not in self._places:
                self._places[name] = self._device.put(array)
                self._runner.bind(name, self._places[name])
            self._device.fill(self._places[name], array)
        self._device.fill(self._places[self._output], self._poison)
        self.queue()
        found: np.ndarray = self._device.get(self._places[self._output], self._poison)
        return found

    def queue(self) -> None:
        """Queue a run on what lies there."""
        self._runner.run(self._device.stream)


def paint(unet: Any, vae: Any, picture: dict[str, np.ndarray]) -> np.ndarray:
    """Paint one picture with two engines; gives its levels, float (H, W, 3).

    Parameters
    ----------
    unet, vae : callable
        As :class:`Engine`.
    picture : dict
        `inputs` (m, m + 1), `final` (m + 1,) and `timesteps` (m,), the scheduler's table; `noise` (1, c, h, w); `class_labels` (r, k);
        `prompt` (r, t, e); `guidance_scale` and `scaling_factor`. Of r = 2 rows the first is the unguided one.
    """
    history = [picture["noise"].astype(np.float64)]
    rows = len(picture["class_labels"])
    unet_inputs = {"class_labels": picture["class_labels"], "encoder_hidden_states": picture["prompt"]}
    for factors, timestep in zip(picture["inputs"], picture["timesteps"], strict=True):
        latents = sum(f * h for f, h in zip(factors, history, strict=False))
        found = unet({**unet_inputs, "sample": np.repeat(latents, rows, 0), "timestep": np.atleast_1d(timestep)}).astype(np.float64)
        unet_inputs = {}
        if rows == 2:
            found = found[:1] + float(picture["guidance_scale"]) * (found[1:] - found[:1])
        history.append(found)
    latents = sum(f * h for f, h in zip(picture["final"], history, strict=True))
    image = vae({"latents": latents / float(picture["scaling_factor"])}).astype(np.float64)[0]
    return np.asarray((np.clip(image / 2 + 0.5, 0, 1) * 255).round().transpose(1, 2, 0))


def check_picture(trt: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Paint the picture of ``--picture``: mean distance from torch's, grey levels, and the median time of each engine's run, ms."""
    device, runner_class = Device(), load_runner()
    unet, vae = (Engine(trt, plan.read_bytes(), device, runner_class) for plan in options.plans)
    with np.load(options.picture) as file:
        picture = dict(file)
    found = paint(unet, vae, picture)
    times = {name: [device.seconds(engine.queue) for _ in range(20)] for name, engine in (("unet_ms", unet), ("vae_ms", vae))}
    return {
        "finite": bool(np.isfinite(found).all()),
        "grey_levels": float(np.abs(found - picture["pixels"]).mean()),
        **{name: round(1e3 * float(np.median(seconds)), 3) for name, seconds in times.items()},
    }


def compare(found: list[np.ndarray], wanted: list[np.ndarray]) -> dict[str, Any]:
    """Relative error of each case, whether all is finite, and the change from the first case to the second as a share of what is wanted."""
    f, w = [x.astype(np.float64) for x in found], [x.astype(np.float64) for x in wanted]
    changed = None
    if len(w) > 1:
        changed = float(np.linalg.norm(f[1] - f[0]) / np.linalg.norm(w[1] - w[0]))
    return {
        "relative_error": [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(f, w, strict=True)],
        "finite": all(bool(np.isfinite(x).all()) for x in f),
        "changed": changed,
    }


def read_cases(path: Path) -> tuple[list[dict[str, np.ndarray]], list[np.ndarray]]:
    """Inputs and wanted output of each case, from an npz with keys like ``0/in/sample`` and ``0/out``."""
    with np.load(path) as file:
        count = 1 + max(int(key.split("/")[0]) for key in file.files)
        prefix = "/in/"
        inputs = [{k.split(prefix)[1]: file[k] for k in file.files if k.startswith(f"{i}{prefix}")} for i in range(count)]
        return inputs, [file[f"{i}/out"] for i in range(count)]


def main(arguments: list[str] | None = None) -> int:
    """Build, run on the cases, compare; prints a line of JSON last. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="builder.py", description="Build one TensorRT engine from ONNX and compare its outputs.")
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--cases", type=Path, help="npz of inputs and wanted outputs")
    parser.add_argument("--timing-cache", type=Path)
    parser.add_argument("--picture", type=Path, help="build nothing; npz of what a picture is painted from, and torch's picture")
    parser.add_argument("--plans", type=Path, nargs=2, metavar=("UNET", "VAE"), help="engines that paint it")
    parser.add_argument("--precision", choices=("float16", "float32"), default="float16")
    parser.add_argument("--level", type=int, default=3, help="builder optimisation level, 0 to 5")
    parser.add_argument("--workspace-gib", type=float, default=8.0)
    parser.add_argument("--own-kernels", action="store_true", help="use no cuBLAS and cuDNN kernels")
    options = parser.parse_args(arguments)
    try:
        import tensorrt as trt

        if options.picture:
            print(json.dumps(check_picture(trt, options)))
            return 0
        started = time.monotonic()
        build(trt, options)
        seconds = round(time.monotonic() - started, 1)
        tell("comparing with torch")
        inputs, wanted = read_cases(options.cases)
        engine = Engine(trt, options.plan.read_bytes(), Device(), load_runner())
        found = [engine(case) for case in inputs]
        print(json.dumps({"tensorrt": trt.__version__, "build_s": seconds, **compare(found, wanted)}))
    except ImportError as problem:
        print(json.dumps({"error": f"{sys.executable}: expected TensorRT 8.6 or later and cuda-python: {problem}"}))
        return 1
    except Exception as problem:  # also what the runner raises
        print(json.dumps({"error": f"{type(problem).__name__}: {problem}" if not isinstance(problem, BuildError) else str(problem)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
