"""Builds the TensorRT engines of a Stable unCLIP model: ``python build/engine.py MODEL_DIR``.

UNet and VAE decoder are exported to ONNX, the ONNX files compared with torch (by onnxruntime), engines built from them
(``build/builder.py``, in a process of its own), their outputs compared with torch's, and a whole picture too. Only what passes is
published. The UNet has four inputs: the unCLIP embedding enters as ``class_labels``, a keyword argument, which an exporter may drop
without a word; so the ONNX file must have all four, and another embedding must change what comes out.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builder import compare
from torch import nn

from rtevo.errors import ModelError, RtevoError
from rtevo.generate.base import GeneratorSettings
from rtevo.generate.compiled import VERIFY_TOLERANCE
from rtevo.generate.engines import default_folder, publish
from rtevo.generate.folder import PIPELINE, ModelFolder, describe
from rtevo.generate.hashes import fingerprint, hash_files
from rtevo.generate.loading import pick_device, with_scheduler
from rtevo.generate.models import StableUnclip
from rtevo.generate.parts import draw_noise, to_pixels
from rtevo.generate.steps import step_table
from rtevo.generate.tensorrt import engine_key

TOLERANCE = {"float16": 1e-2, "float32": 1e-3}
"""Largest relative error, the norm of the difference over the norm of torch's output."""

LEAST_CHANGE = 0.5
"""Another embedding must change the output at least by this share of what it changes torch's."""

OPSET = 17
"""The newest that TensorRT 8.6 reads."""

Tell = Callable[[str], None]
Case = dict[str, torch.Tensor]


class Unet(nn.Module):
    """The network with its four inputs by position."""

    names = ("sample", "timestep", "encoder_hidden_states", "class_labels")
    output = "prediction"

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, class_labels: torch.Tensor
    ) -> torch.Tensor:
        """Prediction (n, c, h, w)."""
        found: torch.Tensor = self.unet(sample, timestep, encoder_hidden_states, class_labels=class_labels, return_dict=False)[0]
        return found


class Vae(nn.Module):
    """The decoder; its input is divided by the scaling factor already."""

    names = ("latents",)
    output = "image"

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Image (1, 3, H, W)."""
        found: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return found


def unet_cases(model: StableUnclip, rows: int) -> list[Case]:
    """Two inputs that differ in the embedding alone."""
    folder = model.folder
    draw = torch.Generator().manual_seed(0)
    sample = torch.randn((rows, *folder.latent_shape), generator=draw).to(model.device, model.dtype)
    told = [model.condition(*(torch.randn((rows, folder.embedding_size), generator=draw) for _ in range(2))) for _ in range(2)]
    common = {
        "sample": sample,
        "timestep": torch.tensor([501.0], device=model.device),
        "encoder_hidden_states": model.prompt.expand(rows, -1, -1).contiguous(),
    }
    return [{**common, "class_labels": labels.detach().to(model.device, model.dtype)} for labels in told]


def vae_cases(model: StableUnclip) -> list[Case]:
    """One input with the spread of finished latents."""
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn((1, *model.folder.latent_shape), generator=draw) / model.pipe.vae.config.scaling_factor
    return [{"latents": latents.to(model.device, model.dtype)}]


def picture_case(model: StableUnclip) -> dict[str, np.ndarray]:
    """What a picture is painted from, as ``builder.paint`` takes it, and the picture that torch paints from it."""
    folder, settings = model.folder, model.settings
    model.pipe.scheduler = scheduler = with_scheduler(model.pipe.scheduler, "ddim")
    scheduler.set_timesteps(settings.steps, device=model.device)
    draw = [torch.Generator().manual_seed(0)]
    noise, latents = draw_noise(draw, folder.embedding_size, folder.latent_shape)
    guided, table = settings.guidance_scale > 1, step_table(scheduler, settings.steps)
    with torch.no_grad():
        condition = model.condition(torch.randn((1, folder.embedding_size), generator=torch.Generator().manual_seed(1)), noise)
        pixels = to_pixels(model.decode(model.denoise(condition, latents, draw, settings.steps))[0])
    return {
        "inputs": table.inputs.numpy(),
        "final": table.final.numpy(),
        "timesteps": table.timesteps.numpy().astype(np.float32),
        "noise": latents.numpy(),
        "class_labels": torch.cat([torch.zeros_like(condition), condition] if guided else [condition]).float().numpy(),
        "prompt": model.prompt.expand(1 + guided, -1, -1).float().cpu().numpy(),
        "guidance_scale": np.array(settings.guidance_scale, np.float64),
        "scaling_factor": np.array(model.pipe.vae.config.scaling_factor, np.float64),
        "pixels": pixels,
    }


def export(network: Unet | Vae, cases: Sequence[Case], file: Path) -> None:
    """Write a network to ONNX with static shapes.

    Raises
    ------
    ModelError
        The file has not all inputs: the exporter has dropped one.
    """
    import onnx

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's about constants, and its own deprecation
        torch.onnx.export(
            network,
            tuple(cases[0][name] for name in network.names),
            str(file),
            input_names=list(network.names),
            output_names=[network.output],
            opset_version=OPSET,
            dynamo=False,
        )
    found = tuple(entry.name for entry in onnx.load(str(file), load_external_data=False).graph.input)
    if found != network.names:
        raise ModelError(
            f"{file.name}: expected the inputs {', '.join(network.names)}, found {', '.join(found)}: the exporter has dropped some"
        )


def torch_outputs(network: nn.Module, names: Sequence[str], cases: Sequence[Case]) -> list[np.ndarray]:
    """What torch says to each case."""
    with torch.no_grad():
        return [network(*(case[name] for name in names)).float().cpu().numpy() for case in cases]


def check_onnx(file: Path, cases: Sequence[Case], wanted: Sequence[np.ndarray], precision: str) -> dict[str, Any]:
    """Run an ONNX file by onnxruntime on the CPU and compare with torch.

    Raises
    ------
    ModelError
        It says something else than torch.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = [session.run(None, {name: tensor.cpu().numpy() for name, tensor in case.items()})[0] for case in cases]
    verdict = compare(found, list(wanted))
    judge(file.name, verdict, precision, "the ONNX file differs from torch")
    return verdict


def judge(name: str, verdict: dict[str, Any], precision: str, what: str = "the engine differs from torch: it is not published") -> None:
    """Refuse what is not finite, too far from torch, or deaf to the embedding.

    Raises
    ------
    ModelError
        With everything that is wrong.
    """
    wrong, limit = [], TOLERANCE[precision]
    if not verdict["finite"]:
        wrong.append("expected finite numbers, found others (half precision overflowed)")
    if not all(error < limit for error in verdict["relative_error"]):  # also where one is not a number
        wrong.append(f"expected a relative error below {limit:g}, found {max(verdict['relative_error']):.3g}")
    if verdict["changed"] is not None and not verdict["changed"] > LEAST_CHANGE:
        wrong.append(
            f"expected another embedding to change the output, found {verdict['changed']:.1%} of the change in torch: class_labels are lost"
        )
    if wrong:
        raise ModelError(f"{name}: {'; '.join(wrong)}; {what}")


def save_cases(file: Path, cases: Sequence[Case], wanted: Sequence[np.ndarray]) -> None:
    """Write inputs and wanted outputs for the builder's own comparison."""
    arrays: dict[str, np.ndarray] = {f"{i}/in/{name}": t.cpu().numpy() for i, case in enumerate(cases) for name, t in case.items()}
    arrays |= {f"{i}/out": array for i, array in enumerate(wanted)}
    np.savez(file, **arrays)  # type: ignore[arg-type]


def run_builder(options: argparse.Namespace, name: str, arguments: Sequence[object], tell: Tell) -> dict[str, Any]:
    """Run ``builder.py`` in a process of its own; gives what it found.

    Raises
    ------
    ModelError
        TensorRT is missing there, or could not do it.
    """
    command = [options.python, str(Path(__file__).with_name("builder.py")), *map(str, arguments)]
    last = ""
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if last:
                    tell(f"{name}: {last}")
                last = line.strip()
    except OSError as problem:
        raise ModelError(f"--python {options.python}: expected an interpreter that can be started: {problem}") from problem
    try:
        found = json.loads(last)
    except ValueError:
        raise ModelError(f"{name}: the builder left with {process.returncode} and said: {last or 'nothing'}") from None
    if "error" in found:
        raise ModelError(f"{name}: {found['error']}")
    return dict(found)


def build_one(options: argparse.Namespace, work: Path, name: str, precision: str, tell: Tell) -> dict[str, Any]:
    """Build one engine; gives how its outputs compare with torch's."""
    files = ("--onnx", work / f"{name}.onnx", "--plan", work / f"{name}.plan", "--cases", work / f"{name}.npz")
    how = ("--level", options.level, "--workspace-gib", options.workspace_gib, *["--own-kernels"] * options.own_kernels)
    return run_builder(options, name, (*files, "--timing-cache", options.caches / f"{name}.timing", "--precision", precision, *how), tell)


def paint_one(options: argparse.Namespace, work: Path, rows: int, tell: Tell) -> dict[str, Any]:
    """Paint a picture with the engines.

    Raises
    ------
    ModelError
        It is not the one that torch has painted.
    """
    plans = (work / f"unet-{rows}.plan", work / "vae.plan")
    found = run_builder(options, "picture", ("--picture", work / "picture.npz", "--plans", *plans), tell)
    if not found["finite"] or not found["grey_levels"] <= VERIFY_TOLERANCE:
        raise ModelError(
            f"picture: expected torch's within {VERIFY_TOLERANCE:g} grey levels on average, found it {found['grey_levels']:.1f} away; "
            "the engines are not published"
        )
    tell(f"picture: {found['grey_levels']:.2f} grey levels from torch's; UNet {found['unet_ms']:g} ms a step, VAE {found['vae_ms']:g} ms")
    return found


def tensorrt_version(python: str) -> str:
    """Version of an interpreter's TensorRT.

    Raises
    ------
    ModelError
        It has none, or is none.
    """
    try:
        done = subprocess.run([python, "-c", "import numpy, tensorrt; print(tensorrt.__version__)"], capture_output=True, text=True)
    except OSError as problem:
        raise ModelError(f"--python {python}: expected a Python interpreter with TensorRT: {problem}") from problem
    if done.returncode:
        why = (done.stderr.strip() or "it does not say why").splitlines()[-1]
        raise ModelError(f"--python {python}: expected one with TensorRT 8.6 or later (pip install 'rtevo[tensorrt]'), but: {why}")
    return done.stdout.strip()


def export_all(folder: ModelFolder, options: argparse.Namespace, work: Path, tell: Tell) -> tuple[str, torch.device]:
    """Export and check everything; gives precision and device. Frees the model: the builder needs the GPU's memory."""
    device = pick_device(options.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    precision = str(dtype).removeprefix("torch.")
    settings = GeneratorSettings(model_path=folder.path, px=options.px, guidance_scale=1.0 if options.unguided else 3.0)
    model = StableUnclip(folder, settings, device, dtype, tell)
    jobs: list[tuple[str, Unet | Vae, list[Case]]] = [(f"unet-{n}", Unet(model.pipe.unet), unet_cases(model, n)) for n in options.rows]
    jobs.append(("vae", Vae(model.pipe.vae), vae_cases(model)))
    np.savez(work / "picture.npz", **picture_case(model))  # type: ignore[arg-type]
    for name, network, cases in jobs:
        tell(f"{name}: exporting to ONNX")
        wanted = torch_outputs(network, network.names, cases)
        export(network, cases, work / f"{name}.onnx")
        save_cases(work / f"{name}.npz", cases, wanted)
        if not options.skip_onnx_check:
            tell(f"{name}: comparing the ONNX file with torch")
            verdict = check_onnx(work / f"{name}.onnx", cases, wanted, precision)
            tell(f"{name}: ONNX relative error {max(verdict['relative_error']):.2g}")
    return precision, device


def build(options: argparse.Namespace, tell: Tell) -> list[Path]:
    """Build and publish the engines of a model; gives their folders.

    Raises
    ------
    RtevoError
        Nothing has been published of what failed.
    """
    folder = describe(options.model).at(options.px)
    if folder.kind != PIPELINE:
        raise ModelError(f"{options.model}: expected a Stable unCLIP model, found {folder.kind}: only the compiled backend paints with it")
    version = tensorrt_version(options.python)
    tell(f"TensorRT {version}")
    out = options.out or default_folder(options.model)
    try:
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=out))
    except OSError as problem:
        raise ModelError(f"--out {out}: expected a folder that can be written to: {problem}") from problem
    options.caches = out  # one for each network: TensorRT 8.6 could not read one network's beside another's
    halves = 1 if options.unguided else 2
    options.rows = sorted({halves, halves * options.batch})
    try:
        tell("hashing the model")
        mark = fingerprint(hash_files(options.model))
        precision, device = export_all(folder, options, work, tell)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        verdicts: dict[str, dict[str, Any]] = {}
        for name in ("vae", *(f"unet-{n}" for n in options.rows)):
            verdicts[name] = build_one(options, work, name, precision, tell)
            judge(name, verdicts[name], precision)
            tell(f"{name}: built in {verdicts[name].get('build_s', 0):g} s, relative error {max(verdicts[name]['relative_error']):.2g}")
        painted = paint_one(options, work, halves, tell)
        made = []
        for n in options.rows:
            key = engine_key(mark, device, version, n, folder.image_size, precision)
            shutil.copy(work / "vae.plan", work / "vae-copy.plan")
            plans = {"unet": work / f"unet-{n}.plan", "vae": work / "vae-copy.plan"}
            made.append(publish(out, key, plans, {"unet": verdicts[f"unet-{n}"], "vae": verdicts["vae"], "picture": painted}))
        return made
    finally:
        if options.keep_onnx:
            tell(f"ONNX files are in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python build/engine.py", description="Build the TensorRT engines of a Stable unCLIP model.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="diffusers folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of engines (default: MODEL_DIR/engines)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="also build for N images at once ([generator] batch)")
    parser.add_argument("--px", type=int, default=0, help="longer side of an image, 768 or 512 say (default: the model's own)")
    parser.add_argument("--unguided", action="store_true", help="for guidance_scale = 1")
    parser.add_argument("--device", default="auto", help="auto, cuda or cuda:N")
    parser.add_argument("--level", type=int, default=3, choices=range(6), help="effort of the builder; higher takes longer (default: 3)")
    parser.add_argument("--workspace-gib", type=float, default=8.0, metavar="GIB", help="GPU memory that kernels may use (default: 8)")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has TensorRT (default: this one)")
    parser.add_argument("--own-kernels", action="store_true", help="use no cuBLAS and cuDNN kernels, where these are not installed")
    parser.add_argument(
        "--skip-onnx-check", action="store_true", help="do not run the ONNX files on the CPU; the engines are compared all the same"
    )
    parser.add_argument("--keep-onnx", action="store_true", help="leave the ONNX files")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error(f"--batch: expected >= 1, got {options.batch}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    began = time.monotonic()
    try:
        for made in build(options, lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)):
            print(f"verified and published: {made}")
    except (RtevoError, ImportError) as problem:
        hint = ": pip install 'rtevo[tensorrt]'" if isinstance(problem, ImportError) else ""
        print(f"error: {problem}{hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
