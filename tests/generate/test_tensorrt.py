"""Engines and the backend that runs them, with a TensorRT whose engines are ONNX files run by onnxruntime at the addresses bound to them.

The exporter, the keys, the refusals, the runner and the backend's loop are the project's own; nothing runs on a GPU. TensorRT for RTX
itself reads an exported model and builds engines from it, which takes no GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rtevo.errors import ModelError
from rtevo.generate import GeneratorSettings, describe, load
from rtevo.generate.engines import EngineKey, find, publish, read_plans, record_timing, timing
from rtevo.generate.graphs import Graph
from rtevo.generate.runner import Runner, RunnerError
from rtevo.generate.tensorrt import TensorRTGenerator, check_faster, machine_key, timed_on
from tests.support.random_model import write_model

pytestmark = [
    pytest.mark.xdist_group("engines"),  # exported once for all
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers"),
]

BUILD = Path(__file__).resolve().parents[2] / "build"
KEY = EngineKey("ab" * 32, "NVIDIA GeForce RTX 4090", ("8.9",), "tensorrt 11.4.0", 2, 768, 768, "float16")
CPU = torch.device("cpu")
PICTURE_TOLERANCE = 2
"""Grey levels: the same sums in another order."""


def fake_tensorrt(compiles: bool = False) -> types.ModuleType:
    """A module with the calls that the runner makes; an engine is an ONNX file. That for RTX compiles, and has a runtime cache."""
    import onnxruntime

    class Context:
        def __init__(self, session: Any) -> None:
            self.session, self.addresses = session, {}  # type: ignore[var-annotated]

        def set_tensor_address(self, name: str, pointer: int) -> bool:
            self.addresses[name] = pointer
            return True

        def execute_async_v3(self, stream: int) -> bool:
            given = {entry.name: self._view(entry).copy() for entry in self.session.get_inputs()}
            for entry, found in zip(self.session.get_outputs(), self.session.run(None, given), strict=True):
                self._view(entry)[...] = found
            return True

        def _view(self, entry: Any) -> Any:
            size = int(np.prod(entry.shape))
            return np.ctypeslib.as_array((ctypes.c_float * size).from_address(self.addresses[entry.name])).reshape(entry.shape)

    class Cache:
        kernels = b""

        def deserialize(self, data: bytes) -> bool:
            self.kernels = bytes(data)
            return True

        def serialize(self) -> bytes:
            return self.kernels or b"kernels"

    class RuntimeConfig:
        cache: Any = None

        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Cache) -> bool:
            self.cache = cache
            return True

    class Engine:
        def __init__(self, session: Any) -> None:
            self.session = session
            self.entries = [*session.get_inputs(), *session.get_outputs()]
            self.num_io_tensors = len(self.entries)
            if compiles:
                self.create_runtime_config = RuntimeConfig

        def create_execution_context(self, settings: Any = None) -> Context:
            assert (settings is not None and settings.cache is not None) == compiles
            return Context(self.session)

        def get_tensor_name(self, i: int) -> str:
            return str(self.entries[i].name)

        def _entry(self, name: str) -> Any:
            return next(entry for entry in self.entries if entry.name == name)

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name in {e.name for e in self.session.get_inputs()} else "out"

        def get_tensor_shape(self, name: str) -> list[int]:
            return list(self._entry(name).shape)

        def get_tensor_dtype(self, name: str) -> str:
            assert self._entry(name).type == "tensor(float)"
            return "DataType.FLOAT"

    class ILogger:
        Severity = types.SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if plan.startswith(b"foreign"):
                self.logger.log(1, "this plan was built by another version")
                return None
            return Engine(onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]))

    module = types.ModuleType("tensorrt")
    module.__dict__.update(__version__="11.4.0", ILogger=ILogger, Runtime=Runtime, TensorIOMode=types.SimpleNamespace(INPUT="in"))
    return module


def copied(trt: Any, onnx: Path, plan: Path, *_: object) -> None:
    """Stands in for the builder: an engine is an ONNX file."""
    shutil.copy(onnx, plan)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The build script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BUILD))
        import engine as script

        patch.setattr(script, "TIMED", 2)
        yield script
        for name in ("engine", "builder"):
            sys.modules.pop(name, None)


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands in for TensorRT."""
    module = fake_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "large"
    write_model(folder, "large", narrow=16, px=64, half=False, shallow=True)
    return folder


@pytest.fixture(scope="module")
def built(engine: Any, model: Path) -> Path:
    """The model with its engines, built for one image and for three at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", fake_tensorrt())
        patch.setattr(engine, "run_builder", copied)
        assert engine.main([str(model), "--device", "cpu", "--batch", "3"]) == 0
    return model


def paint_beside_eager(settings: GeneratorSettings, count: int) -> None:
    """Paint with engines and with the reference, and with another scheduler; the pictures must be the same."""
    size = describe(settings.model_path or Path()).embedding_size
    embeddings = np.random.default_rng(0).standard_normal((count, size), np.float32)
    painted = {}
    for backend in ("eager", "tensorrt"):
        with load(replace(settings, backend=backend)) as generator:
            assert generator.description.startswith(backend)
            painted[backend] = list(generator.paint(embeddings, np.arange(count)))
            generator.reschedule("dpm++2m", settings.steps + 1)
            painted[backend] += list(generator.paint(embeddings[:1], [0]))
    for wanted, found in zip(painted["eager"], painted["tensorrt"], strict=True):
        assert np.abs(wanted.pixels.astype(int) - found.pixels).max() <= PICTURE_TOLERANCE
    assert (painted["eager"][0].pixels != painted["eager"][-1].pixels).any()


@pytest.mark.slow
def test_engines_paint_what_the_reference_paints(built: Path, tensorrt: types.ModuleType) -> None:
    folders = sorted((built / "engines").glob("[!.]*/"))
    assert [p.name.split("-")[-2] for p in folders] == ["2x64x64", "6x64x64"]
    for own in folders:
        figures = timing(own, timed_on(CPU))
        assert figures["grey_levels"] < 0.1
        assert {"tensorrt_ms", "compiled_ms"} < figures.keys()
    paint_beside_eager(GeneratorSettings(built, steps=3, scheduler="ddim", device="cpu", batch=3), 5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "narrow", "guidance"), [("kandinsky", 16, 1.0)])
def test_engines_of_every_family(
    engine: Any, tmp_path: Path, tensorrt: types.ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str, narrow: int, guidance: float
) -> None:  # fmt: skip
    monkeypatch.setattr(engine, "run_builder", copied)
    write_model(tmp_path / kind, kind, narrow=narrow, px=64, half=False, shallow=True)
    assert engine.main([str(tmp_path / kind), "--device", "cpu", *["--unguided"] * (guidance == 1)]) == 0
    paint_beside_eager(GeneratorSettings(tmp_path / kind, steps=2, scheduler="ddim", device="cpu", guidance_scale=guidance), 1)


@pytest.mark.slow
def test_auto_takes_only_engines_that_were_faster_on_this_machine(built: Path, tensorrt: types.ModuleType, tmp_path: Path) -> None:
    engines = shutil.copytree(built / "engines", tmp_path / "engines")
    settings, folder = GeneratorSettings(built, device="cpu", engines=engines), describe(built)
    (own,) = engines.glob("[!.]*-2x64x64-*")
    for figures, match in (
        ({"tensorrt_ms": 30.0, "compiled_ms": 30.0}, r"takes 30\.0 ms with it, 30\.0 ms with compiled"),
        ({"grey_levels": 0.1}, r"expected times of this machine \(cpu, driver none, torch .*\), found none: .* --time"),
    ):
        record_timing(own, timed_on(CPU), figures)
        with pytest.raises(ModelError, match=match):
            check_faster(folder, settings)
    record_timing(own, timed_on(CPU), {"tensorrt_ms": 20.0, "compiled_ms": 30.0})
    check_faster(folder, settings)
    own.joinpath("timed.json").write_text(json.dumps({"NVIDIA H200, driver 1, torch 2": {"tensorrt_ms": 1.0, "compiled_ms": 2.0}}))
    with pytest.raises(ModelError, match="expected times of this machine"):
        check_faster(folder, settings)


@pytest.mark.slow
def test_kernels_that_tensorrt_compiles_are_kept_for_the_next_start(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = shutil.copytree(built / "engines", tmp_path / "engines")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(compiles=True))
    settings = GeneratorSettings(built, steps=1, scheduler="ddim", device="cpu", engines=engines)
    with TensorRTGenerator(describe(built), settings) as generator:
        generator.warm_up()
    caches = sorted(file.name for file in engines.glob("*/*.cache"))
    assert caches == ["unet.cpu-none.cache", "vae.cpu-none.cache"]
    (file,) = engines.glob("*/vae.cpu-none.cache")
    file.write_bytes(b"known kernels")
    with TensorRTGenerator(describe(built), settings) as generator:
        assert [runner.runtime_cache() for runner in generator._runners.values()] == [b"kernels", b"known kernels"]


@pytest.mark.slow
def test_engines_of_something_else_are_not_loaded(
    built: Path, tmp_path: Path, tensorrt: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    settings = GeneratorSettings(built, steps=1, scheduler="ddim", device="cpu", backend="tensorrt")
    with monkeypatch.context() as patch:
        for name in ("tensorrt", "tensorrt_rtx"):
            patch.setitem(sys.modules, name, None)
        with pytest.raises(ModelError, match=r"expected TensorRT or TensorRT for RTX: pip install .*choose backend compiled"):
            load(settings)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    tensorrt.__dict__["__version__"] = "11.5.0"
    with pytest.raises(ModelError, match=r"the engines there differ .*tensorrt tensorrt 11\.4\.0 instead of tensorrt 11\.5\.0"):
        load(settings)
    with pytest.raises(ModelError, match="but there are none: build it"):
        load(replace(settings, engines=tmp_path))
    tensorrt.__dict__["__version__"] = "11.4.0"
    changed = shutil.copytree(built, tmp_path / "changed")
    weights = changed / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"the engines there differ .*model "):
        load(replace(settings, model_path=changed))


def put(folder: Path, key: EngineKey = KEY, data: bytes = b"plan") -> Path:
    """Publish engines that are only bytes."""
    plans = {}
    for name in ("unet", "vae"):
        plans[name] = folder.parent / f"{name}.tmp"
        plans[name].write_bytes(data + name.encode())
    return publish(folder, key, plans, {})


def test_only_whole_engines_of_the_very_same_key(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    own = put(folder)
    assert own.name == "abababababab-nvidia-geforce-rtx-4090-sm89-tensorrt-11.4.0-2x768x768-float16"
    assert read_plans(find(folder, KEY)) == {"unet": b"planunet", "vae": b"planvae"}
    for change in (
        {"model": "cd" * 32}, {"gpu": "NVIDIA H200"}, {"capabilities": ("9.0",)}, {"tensorrt": "tensorrt 8.6.0"}, {"rows": 4},
        {"height": 512}, {"precision": "float32"},
    ):  # fmt: skip
        ((name, wanted),) = change.items()
        said = wanted[0] if isinstance(wanted, tuple) else str(wanted)[:12]
        with pytest.raises(ModelError, match=f"{name} .* instead of {said}"):
            find(folder, replace(KEY, **change))  # type: ignore[arg-type]
    put(folder, data=b"newer")
    assert read_plans(find(folder, KEY))["unet"] == b"newerunet"
    assert [p.name for p in folder.iterdir()] == [own.name]  # nothing is left over

    (own / "vae.plan").write_bytes(b"newerva")
    with pytest.raises(ModelError, match=r"vae\.plan: expected the file that was verified, found another: build it again"):
        read_plans(own)
    (own / "vae.plan").unlink()
    with pytest.raises(ModelError, match=r"vae\.plan: expected the file that was verified, found none"):
        read_plans(own)
    (own / "engine.json").write_text('{"key": ')
    with pytest.raises(ModelError, match="the engine was not finished; build it again"):
        find(folder, KEY)


def test_an_engine_of_several_capabilities_runs_on_every_gpu_that_has_one_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    own = put(folder, replace(KEY, gpu="", capabilities=("8.6", "8.9"), tensorrt="tensorrt_rtx 1.7.1.116"))
    assert own.name == "abababababab-rtx-sm86-89-tensorrt_rtx-1.7.1.116-2x768x768-float16"
    here = replace(KEY, tensorrt="tensorrt_rtx 1.7.1.116")
    assert find(folder, here) == find(folder, replace(here, gpu="NVIDIA GeForce RTX 3090", capabilities=("8.6",))) == own
    with pytest.raises(ModelError, match=r"capabilities 8\.6\+8\.9 instead of 12\.0"):
        find(folder, replace(here, capabilities=("12.0",)))


def test_a_renamed_folder_is_still_another_engine(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    other = replace(KEY, gpu="NVIDIA H200")
    put(folder).rename(folder / other.name)
    with pytest.raises(ModelError, match="gpu NVIDIA GeForce RTX 4090 instead of NVIDIA H200"):
        find(folder, other)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"relative_error": [0.02, 0.001]}, r"vae: expected a relative error below 0\.001, found 0\.02; it is not published"),
        ({"relative_error": [float("nan"), 0.1]}, "expected a relative error below"),
        ({"finite": False}, "expected finite numbers, found others"),
        ({"changed": 0.01}, r"expected another embedding to change the output, found 1\.0% of the change in torch: an input is lost"),
    ],
)
def test_what_differs_from_torch_is_refused(engine: Any, change: dict[str, Any], match: str) -> None:
    good = {"relative_error": [1e-6, 1e-6], "finite": True, "changed": 1.0}
    engine.judge("vae", good, "float32")
    with pytest.raises(ModelError, match=match):
        engine.judge("vae", good | change, "float32")


def test_a_lost_input_shows_in_the_comparison(engine: Any) -> None:
    wanted = [np.ones((2, 2)), np.full((2, 2), 3.0)]
    assert engine.compare(wanted, wanted) == {"relative_error": [0.0, 0.0], "finite": True, "changed": 1.0}
    assert engine.compare([wanted[0], wanted[0]], wanted)["changed"] == 0


def test_what_fails_is_not_published(
    engine: Any, model: Path, tmp_path: Path, tensorrt: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(engine, "run_builder", lambda trt, onnx, plan, *_: plan.write_bytes(b"foreign"))
    job = engine.Job(tmp_path / "vae.onnx", ("latents",), [], [])
    monkeypatch.setattr(engine, "export_all", lambda folder, options, work, tell: {"vae": replace(job, file=work / "vae.onnx")})
    out = tmp_path / "engines"
    assert engine.main([str(model), "--device", "cpu", "--out", str(out)]) == 1
    assert "does not accept this engine: this plan was built by another version" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_no_tensorrt_is_reported_before_anything_is_exported(
    engine: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    out = tmp_path / "engines"
    assert engine.main([str(model), "--out", str(out)]) == 1
    assert "expected TensorRT or TensorRT for RTX: pip install" in capsys.readouterr().err
    assert not out.exists()


def test_what_cannot_be_captured_runs_piece_by_piece() -> None:
    class Asked(Runner):
        def __init__(self, context: Any) -> None:
            self._context = context

    assert Asked(object()).capturable(7)  # TensorRT that cannot be asked
    asked: list[int] = []
    context = types.SimpleNamespace(is_stream_capturable=lambda stream: bool(asked.append(stream)))
    assert not Asked(context).capturable(7)
    assert asked == [7]
    Graph(lambda: asked.append(8), CPU, capturable=lambda _: False)()
    assert asked == [7, 8]


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT for RTX itself."""
    return pytest.importorskip("tensorrt_rtx")


@pytest.mark.slow
def test_tensorrt_for_rtx_builds_engines_without_a_gpu(
    rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(BUILD))
    for name in ("engine", "builder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    script = importlib.import_module("engine")
    folder = tmp_path / "sd15"
    write_model(folder, "sd15", narrow=16, px=64, shallow=True)
    command = [str(folder), "--device", "cpu", "--module", "tensorrt_rtx", "--unguided"]
    assert script.main([*command, "--capability", "8.9", "9.0"]) == 1
    assert "--capability: expected some of 7.5, 8.0, 8.6, 8.9, 12.0" in capsys.readouterr().err
    assert script.main(command) == 0
    assert "not run here: run python build/engine.py MODEL_DIR --time" in capsys.readouterr().out
    settings = GeneratorSettings(folder, guidance_scale=1.0, precision="float16", device="cpu")
    key = machine_key(
        rtx, describe(folder), settings, 1, json.loads(next(folder.glob("engines/*/engine.json")).read_text())["key"]["model"]
    )
    own = find(folder / "engines", replace(key, gpu="NVIDIA GeForce RTX 4090", capabilities=("8.9",)))
    plans = read_plans(own)
    assert {name: len(plan) > 1 << 16 for name, plan in plans.items()} == {"unet": True, "vae": True}
    if not torch.cuda.is_available():
        with pytest.raises(RunnerError, match=r"tensorrt_rtx .* does not accept this engine: .*CUDA"):
            Runner(plans["vae"], rtx)


def test_a_builder_that_fails_or_crashes_is_reported(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    options, trt = engine.parse(["model", "--capability", "8.9"]), fake_tensorrt()
    for text, match in (
        ("echo building; echo no kernel for attention; exit 1", "unet-1: no kernel for attention$"),
        ("echo building; kill -11 $$", r"unet-1: tensorrt 11\.4\.0 crashed \(signal 11\) after: building$"),
    ):
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        said: list[str] = []
        with pytest.raises(ModelError, match=match):
            engine.run_builder(trt, tmp_path / "unet-1.onnx", tmp_path / "unet-1.plan", options, tmp_path / "timing", said.append)
        assert said[0] == "unet-1: building"


def test_tensorrts_own_reason_is_passed_on(rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BUILD))
    builder = importlib.import_module("builder")
    (tmp_path / "no.onnx").write_bytes(b"not a network")
    with pytest.raises(ModelError, match=r"tensorrt_rtx .* cannot read no\.onnx: .*parse"):
        builder.build(rtx, tmp_path / "no.onnx", tmp_path / "no.plan", lambda _: None, capabilities=["8.9"])
    for name in ("engine", "builder"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(RunnerError, match="does not accept this engine: this plan was built by another version"):
        Runner(b"foreign", fake_tensorrt())
    assert not (tmp_path / "no.plan").exists()
