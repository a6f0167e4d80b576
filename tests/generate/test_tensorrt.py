"""Engines and the backend that runs them, with a TensorRT whose engines are ONNX files run by onnxruntime at the addresses bound to them.

The exporter, the keys, the refusals, the runner and the backend's loop are the project's own; no engine is built and no GPU is used.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.errors import ModelError
from rtevo.generate import GeneratorSettings, load
from rtevo.generate.engines import EngineKey, find, publish
from tests.support.random_model import write_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning:diffusers")

BUILD = Path(__file__).resolve().parents[2] / "build"
KEY = EngineKey("ab" * 32, "NVIDIA GeForce RTX 4090", "8.9", "10.3.0", 2, 768, 768, "float16")
PICTURE_TOLERANCE = 2
"""Grey levels: the same sums in another order."""


def fake_tensorrt() -> types.ModuleType:
    """A module with the calls that the runner makes; an engine is an ONNX file."""
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

    class Engine:
        def __init__(self, session: Any) -> None:
            self.session = session
            self.entries = [*session.get_inputs(), *session.get_outputs()]
            self.num_io_tensors = len(self.entries)

        def create_execution_context(self) -> Context:
            return Context(self.session)

        def get_tensor_name(self, i: int) -> str:
            return str(self.entries[i].name)

        def _entry(self, name: str) -> Any:
            return next(entry for entry in self.entries if entry.name == name)

        def get_tensor_mode(self, name: str) -> str:
            return "in" if self._entry(name) in self.session.get_inputs() or name in {e.name for e in self.session.get_inputs()} else "out"

        def get_tensor_shape(self, name: str) -> list[int]:
            return list(self._entry(name).shape)

        def get_tensor_dtype(self, name: str) -> str:
            assert self._entry(name).type == "tensor(float)"
            return "DataType.FLOAT"

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if plan.startswith(b"foreign"):
                return None
            return Engine(onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"]))

    module = types.ModuleType("tensorrt")
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    module.__dict__.update(__version__="10.3.0", Logger=logger, Runtime=Runtime, TensorIOMode=types.SimpleNamespace(INPUT="in"))
    return module


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """The build script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BUILD))
        import engine as script

        yield script
        for name in ("engine", "builder"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "large"
    write_model(folder, "large", narrow=16, px=64, half=False)
    return folder


def fake_build(verdict: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A builder whose engines are the ONNX files; it paints with them by onnxruntime."""

    def run(options: Any, name: str, arguments: Any, tell: Any) -> dict[str, Any]:
        files = dict(itertools.pairwise(arguments))
        if "--picture" in files:
            unet, vae = arguments[-2:]
            return paint_with_onnx(files["--picture"], unet, vae)
        shutil.copy(files["--onnx"], files["--plan"])
        return {"tensorrt": "10.3.0", "build_s": 1.0, "relative_error": [1e-6, 1e-6], "finite": True, "changed": None, **verdict}

    return run


def paint_with_onnx(picture: Path, unet: Path, vae: Path) -> dict[str, Any]:
    """What the builder finds out about a picture, with engines that keep what they were given, as the real ones do."""
    import builder
    import onnxruntime

    def engine(plan: Path) -> Callable[[dict[str, Any]], Any]:
        session = onnxruntime.InferenceSession(str(plan), providers=["CPUExecutionProvider"])
        kept: dict[str, Any] = {}

        def run(given: dict[str, Any]) -> Any:
            kept.update({name: np.asarray(array, np.float32) for name, array in given.items()})
            return session.run(None, kept)[0]

        return run

    with np.load(picture) as file:
        wanted = dict(file)
    found = builder.paint(engine(unet), engine(vae), wanted)
    return {
        "finite": bool(np.isfinite(found).all()),
        "grey_levels": float(np.abs(found - wanted["pixels"]).mean()),
        "unet_ms": 1.0,
        "vae_ms": 1.0,
    }


@pytest.fixture(scope="module")
def built(engine: Any, model: Path) -> Path:
    """The model with its engines, built for one image and for three at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "run_builder", fake_build({"changed": 1.0}))
        patch.setattr(engine, "tensorrt_version", lambda python: "10.3.0")
        assert engine.main([str(model), "--device", "cpu", "--batch", "3"]) == 0
    for file in (model / "engines").glob("*/engine.json"):  # the picture was painted by the builder's own loop
        assert json.loads(file.read_text())["verified"]["picture"]["grey_levels"] < 0.1
    return model


@pytest.mark.slow
def test_engines_paint_what_the_reference_paints(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(p.name.split("-")[-2] for p in (built / "engines").glob("[!.]*/")) == ["2x64x64", "6x64x64"]
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt())
    embeddings = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    painted = {}
    for backend in ("eager", "tensorrt"):
        settings = GeneratorSettings(built, steps=3, scheduler="ddim", device="cpu", batch=3, backend=backend)
        with load(settings) as generator:
            assert generator.description.startswith(backend)
            painted[backend] = list(generator.paint(embeddings, np.arange(5)))
            generator.reschedule("dpm++2m", 2)
            painted[backend] += list(generator.paint(embeddings[:1], [0]))
    for wanted, found in zip(painted["eager"], painted["tensorrt"], strict=True):
        assert np.abs(wanted.pixels.astype(int) - found.pixels).max() <= PICTURE_TOLERANCE
    assert (painted["eager"][0].pixels != painted["eager"][-1].pixels).any()


@pytest.mark.slow
def test_engines_of_something_else_are_not_loaded(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GeneratorSettings(built, steps=1, scheduler="ddim", device="cpu", backend="tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ModelError, match=r"expected TensorRT 8\.6 or later: pip install .*choose backend compiled"):
        load(settings)
    module = fake_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    module.__dict__["__version__"] = "10.4.0"
    with pytest.raises(ModelError, match=r"those there are for something else .*tensorrt 10\.3\.0 instead of 10\.4\.0"):
        load(settings)
    with pytest.raises(ModelError, match="but there are none: build it"):
        load(replace(settings, engines=tmp_path))
    module.__dict__["__version__"] = "10.3.0"
    changed = shutil.copytree(built, tmp_path / "changed")
    weights = changed / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"those there are for something else .*model "):
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
    assert own.name == "abababababab-nvidia-geforce-rtx-4090-sm89-trt10.3.0-2x768x768-float16"
    assert find(folder, KEY) == {"unet": b"planunet", "vae": b"planvae"}
    for change in (
        {"model": "cd" * 32}, {"gpu": "NVIDIA H200"}, {"capability": "9.0"}, {"tensorrt": "8.6.0"}, {"rows": 4}, {"height": 512},
        {"precision": "float32"},
    ):  # fmt: skip
        ((name, wanted),) = change.items()
        with pytest.raises(ModelError, match=f"{name} .* instead of {str(wanted)[:12]}"):
            find(folder, replace(KEY, **change))  # type: ignore[arg-type]
    put(folder, data=b"newer")
    assert find(folder, KEY)["unet"] == b"newerunet"
    assert [p.name for p in folder.iterdir()] == [own.name]  # nothing is left over

    (own / "vae.plan").write_bytes(b"newerva")
    with pytest.raises(ModelError, match=r"vae\.plan: expected the file that was verified, found another: build it anew"):
        find(folder, KEY)
    (own / "vae.plan").unlink()
    with pytest.raises(ModelError, match=r"vae\.plan: expected the file that was verified, found none"):
        find(folder, KEY)
    (own / "engine.json").write_text('{"key": ')
    with pytest.raises(ModelError, match="the engine was not finished; build it anew"):
        find(folder, KEY)


def test_a_renamed_folder_is_still_another_engine(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    other = replace(KEY, gpu="NVIDIA H200")
    put(folder).rename(folder / other.name)
    with pytest.raises(ModelError, match="found gpu NVIDIA GeForce RTX 4090 instead of NVIDIA H200"):
        find(folder, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verdict", "match"),
    [
        ({"relative_error": [0.02, 0.001]}, r"vae: expected a relative error below 0\.001, found 0\.02; .*not published"),
        ({"relative_error": [float("nan"), 0.1]}, "expected a relative error below"),
        ({"finite": False}, "expected finite numbers, found others"),
        ({"changed": 0.01}, r"expected another embedding to change the output, found 1\.0% of the change in torch"),
    ],
)
def test_what_fails_is_not_published(
    engine: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    verdict: dict[str, Any], match: str,
) -> None:  # fmt: skip
    import re

    monkeypatch.setattr(engine, "run_builder", fake_build(verdict))
    monkeypatch.setattr(engine, "tensorrt_version", lambda python: "10.3.0")
    monkeypatch.setattr(engine, "export_all", exported)
    assert engine.main([str(model), "--device", "cpu", "--out", str(tmp_path / "engines")]) == 1
    assert re.search(match, capsys.readouterr().err)
    assert list((tmp_path / "engines").iterdir()) == []


def test_another_picture_than_torchs_is_not_published(
    engine: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = fake_build({"changed": 1.0})

    def run(options: Any, name: str, arguments: Any, tell: Any) -> dict[str, Any]:
        if name != "picture":
            return build(options, name, arguments, tell)
        return {"finite": True, "grey_levels": 30.2, "unet_ms": 1.0, "vae_ms": 1.0}

    monkeypatch.setattr(engine, "run_builder", run)
    monkeypatch.setattr(engine, "tensorrt_version", lambda python: "10.3.0")
    monkeypatch.setattr(engine, "export_all", exported)
    assert engine.main([str(model), "--device", "cpu", "--out", str(tmp_path / "engines")]) == 1
    assert "picture: expected torch's within 6 grey levels on average, found it 30.2 away" in capsys.readouterr().err
    assert not list((tmp_path / "engines").glob("*/engine.json"))


def exported(folder: Any, options: Any, work: Path, tell: Any) -> tuple[str, Any]:
    """Stands in for the export: files that are only names."""
    import torch

    for name in ("vae", *(f"unet-{n}" for n in options.rows)):
        (work / f"{name}.onnx").write_text(name)
    return "float32", torch.device("cpu")


def test_a_dropped_input_is_noticed(engine: Any, tmp_path: Path) -> None:
    import torch

    class Deaf(torch.nn.Module):
        names = engine.Unet.names
        output = "prediction"

        def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, class_labels: Any) -> Any:
            return sample * 2 + timestep + encoder_hidden_states.sum()

    case = {name: torch.ones(1, 2) for name in Deaf.names}
    with pytest.raises(ModelError, match=r"class_labels, found sample, timestep, encoder_hidden_states: the exporter has dropped"):
        engine.export(Deaf(), [case], tmp_path / "deaf.onnx")


def test_no_tensorrt_is_said_before_anything_is_exported(
    engine: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engines"
    assert engine.main([str(model), "--out", str(out), "--python", "/nowhere/python"]) == 1
    assert "--python /nowhere/python: expected a Python interpreter with TensorRT" in capsys.readouterr().err
    assert not out.exists()


def test_the_builder_serves_old_and_new_versions(engine: Any, tmp_path: Path) -> None:
    import builder

    flags = types.SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
    made = types.SimpleNamespace(create_network=lambda bits: bits)
    for version, bits, typed in (("8.6.0", 1, False), ("10.3.0", 2, True)):
        module = types.SimpleNamespace(__version__=version, NetworkDefinitionCreationFlag=flags)
        assert builder.make_network(module, made) == (bits, typed)


def test_a_failing_builder_says_what_tensorrt_said(engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho building\necho '" + json.dumps({"error": "TensorRT could not build"}) + "'\nexit 1\n")
    script.chmod(0o755)
    options = engine.parse(["model", "--python", str(script)])
    options.caches = tmp_path
    said: list[str] = []
    with pytest.raises(ModelError, match="unet-2: TensorRT could not build"):
        engine.build_one(options, tmp_path, "unet-2", "float16", said.append)
    assert said == ["unet-2: building"]
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(ModelError, match="the builder left with -9 and said: nothing"):
        engine.build_one(options, tmp_path, "unet-2", "float16", said.append)
