"""Builds the TensorRT engines of a model: ``python build/engine.py MODEL_DIR``.

The network and the decoder are exported to ONNX; the ONNX files are compared with torch (by onnxruntime); engines are built from them
(``build/builder.py``); their outputs are compared with torch's, and a picture with the reference's; then pictures are timed beside the
compiled backend. Only engines that pass are published. Exporters can lose an input without an error; so another embedding must change the
output of the ONNX file and of the engine.

TensorRT for RTX builds without a GPU, for GPUs of named compute capabilities. An engine that cannot run where it was built is published as
such: ``--time`` runs it on the computer that will paint, and backend ``auto`` uses it only afterwards.
"""

from __future__ import annotations

import argparse
import gc
import logging
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builder import known_capabilities
from torch import nn

from rtevo.errors import ModelError, RtevoError
from rtevo.generate.base import GeneratorSettings
from rtevo.generate.compiled import CompiledGenerator
from rtevo.generate.engines import default_folder, publish, record_timing
from rtevo.generate.folder import ModelFolder, describe
from rtevo.generate.hashes import fingerprint, hash_files
from rtevo.generate.loading import pick_device, with_scheduler
from rtevo.generate.models import load_model
from rtevo.generate.runner import Runner, RunnerError
from rtevo.generate.tensorrt import MODULES, Static, TensorRTGenerator, find_engines, installed, machine, machine_key, portable, timed_on

TOLERANCE = {"float16": 1e-2, "float32": 1e-3}
"""Largest relative error, the norm of the difference over the norm of torch's output."""

LEAST_CHANGE = 0.5
"""Another embedding must change the output at least by this share of the change in torch's output."""

OPSET = 22
"""TensorRT for RTX 1.7.1 crashes on networks with an IP-Adapter where attention is an operation of its own, as from 23 on."""

EMBEDDED = 1 << 30
"""Largest weights in the ONNX file itself, bytes, because it cannot exceed 2 GiB; larger ones lie beside it."""

TIMED = 20
"""Number of pictures that are timed with each backend."""

Tell = Callable[[str], None]
Case = tuple[torch.Tensor, ...]


class Network(nn.Module):
    """The network without the parts computed once: inputs are a sample, its time embedding with all additions, and the attended words."""

    names = ("sample", "embedding", "text")
    output = "prediction"

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample: torch.Tensor, embedding: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Prediction (n, c, h, w)."""
        found: torch.Tensor = self.denoiser._network(sample, embedding, text)
        return found

    def case(self, model: Any, count: int, seed: int) -> Case:
        """Return the network's inputs for pictures of some embeddings; only the embeddings depend on the seed."""
        folder = model.folder
        found: list[Case] = []
        latents = torch.randn((count, *folder.latent_shape), generator=torch.Generator().manual_seed(0))
        draw = torch.Generator().manual_seed(seed)
        embeddings, noise = (torch.randn((count, folder.embedding_size), generator=draw) for _ in range(2))
        condition = model.condition(embeddings, noise).to(model.device, model.dtype)
        denoiser, evaluate = self.denoiser, self.denoiser._network

        def keep(*given: torch.Tensor) -> Any:
            found.append(given)
            return evaluate(*given)

        denoiser._network = keep
        try:
            denoiser(latents.to(model.device), denoiser.time_embeddings[:1], denoiser.embed(condition))
        finally:
            del denoiser._network
        return tuple(part.contiguous().clone() for part in found[0])


class Decoder(nn.Module):
    """The decoder, from latents to an image."""

    names = ("latents",)
    output = "image"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network, self._decode = getattr(model.pipe, "vae", None) or model.pipe.movq, model.decode

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Image (1, 3, H, W)."""
        found: torch.Tensor = self._decode(latents)
        return found


@dataclass
class Job:
    """One engine to build: inputs and torch's outputs for some cases, on the CPU."""

    file: Path
    names: tuple[str, ...]
    cases: list[Case]
    wanted: list[np.ndarray]


def export(network: Any, case: Case, file: Path) -> None:
    """Write a network to ONNX with static shapes."""
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # warnings about missing packages that are not needed
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), case, str(file), input_names=list(network.names), output_names=[network.output], opset_version=OPSET,
            dynamo=True, external_data=size > EMBEDDED, verbose=False,
        )  # fmt: skip


def compare(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the relative error of each case, whether all is finite, and the change between the first two cases relative to torch's."""
    f, w = ([x.astype(np.float64) for x in part] for part in (found, wanted))
    return {
        "relative_error": [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(f, w, strict=True)],
        "finite": all(bool(np.isfinite(x).all()) for x in f),
        "changed": float(np.linalg.norm(f[1] - f[0]) / np.linalg.norm(w[1] - w[0])) if len(w) > 1 else None,
    }


def judge(name: str, verdict: dict[str, Any], precision: str) -> None:
    """Refuse outputs that are not finite, too far from torch's, or independent of the embedding.

    Raises
    ------
    ModelError
        With all problems.
    """
    wrong, limit = [], TOLERANCE[precision]
    if not verdict["finite"]:
        wrong.append("expected finite numbers, found others (half precision overflowed)")
    if not all(error < limit for error in verdict["relative_error"]):  # also if one is not a number
        wrong.append(f"expected a relative error below {limit:g}, found {max(verdict['relative_error']):.3g}")
    if verdict["changed"] is not None and not verdict["changed"] > LEAST_CHANGE:
        wrong.append(
            f"expected another embedding to change the output, found {verdict['changed']:.1%} of the change in torch: an input is lost"
        )
    if wrong:
        raise ModelError(f"{name}: {'; '.join(wrong)}; it is not published")


def run_onnx(job: Job) -> list[np.ndarray]:
    """Return the outputs of an ONNX file by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(job.file), providers=["CPUExecutionProvider"])
    there = {entry.name for entry in session.get_inputs()}
    given = [{name: part.numpy() for name, part in zip(job.names, case, strict=True) if name in there} for case in job.cases]
    return [np.asarray(session.run(None, case)[0]) for case in given]


def run_engine(trt: Any, plan: Path, job: Job, device: torch.device) -> list[np.ndarray]:
    """Return the outputs of an engine; the output buffer is set to NaN before each run.

    Raises
    ------
    ModelError
        TensorRT does not accept the engine, or cannot run it.
    """
    try:
        engine = Static(Runner(plan.read_bytes(), trt), device)
        found = []
        for case in job.cases:
            for name in engine._runner.outputs:
                engine.tensors[name].fill_(float("nan"))
            found.append(engine(**dict(zip(job.names, case, strict=True))).float().cpu().clone().numpy())
    except RunnerError as problem:
        raise ModelError(f"{plan.name}: {problem}") from problem
    return found


def export_all(folder: ModelFolder, options: argparse.Namespace, work: Path, tell: Tell) -> dict[str, Job]:
    """Export and check everything; return the jobs by name. Frees the model, because the builder needs the GPU's memory."""
    dtype = getattr(torch, options.precision)
    settings = settings_of(options)
    model: Any = load_model(folder, settings, options.device, dtype, tell)
    scheduler = with_scheduler(model.pipe.scheduler, settings.scheduler)
    scheduler.set_timesteps(settings.steps, device=options.device)
    network, decoder = Network(model.denoiser(scheduler.timesteps)), Decoder(model)
    jobs = {}
    for count in options.counts:
        with torch.no_grad():
            cases = [network.case(model, count, seed) for seed in (1, 2)]
        jobs[f"unet-{count}"] = _export_one(network, cases, work / f"unet-{count}.onnx", options, tell)
    latents = torch.randn((1, *folder.latent_shape), generator=torch.Generator().manual_seed(1)).to(options.device, dtype)
    jobs["vae"] = _export_one(decoder, [(latents,)], work / "vae.onnx", options, tell)
    return jobs


def _export_one(network: Any, cases: list[Case], file: Path, options: argparse.Namespace, tell: Tell) -> Job:
    tell(f"{file.stem}: exporting to ONNX")
    wanted: list[np.ndarray] = []
    if not options.skip_onnx_check or options.runs_here:
        with torch.no_grad():
            wanted = [network(*case).float().cpu().numpy() for case in cases]
    export(network, cases[0], file)
    job = Job(file, network.names, [tuple(part.cpu() for part in case) for case in cases], wanted)
    if not options.skip_onnx_check:
        verdict = compare(run_onnx(job), wanted)
        judge(file.name, verdict, options.precision)
        tell(f"{file.stem}: ONNX relative error {max(verdict['relative_error']):.2g}")
    return job


def settings_of(options: argparse.Namespace, engines: Path | None = None) -> GeneratorSettings:
    """Return the settings of the pictures that judge the engines."""
    return GeneratorSettings(
        options.model, device=str(options.device), px=options.px, guidance_scale=1.0 if options.unguided else 3.0, batch=options.batch,
        scheduler="ddim", precision=options.precision, engines=engines, fingerprint=options.mark,
    )  # fmt: skip


def prove(folder: ModelFolder, options: argparse.Namespace, engines: Path, tell: Tell) -> dict[str, float]:
    """Paint with the engines, and with the compiled backend; return the distance from the reference's picture, and times, p50, ms.

    Raises
    ------
    ModelError
        The engines' picture differs from the reference's.
    """
    figures: dict[str, float] = {}
    settings = settings_of(options, engines)
    for kind in (TensorRTGenerator, CompiledGenerator):
        with kind(folder, settings, tell) as generator:
            generator.warm_up()
            figures[f"{kind.backend}_ms"] = round(picture_ms(generator), 3)
            figures.setdefault("grey_levels", round(generator.apart, 3))
    tell(
        f"picture: {figures['grey_levels']:.2f} grey levels from the reference; {settings.steps} steps take {figures['tensorrt_ms']:g} ms, "
        f"with the compiled backend {figures['compiled_ms']:g} ms"
    )
    return figures


def picture_ms(generator: Any) -> float:
    """Return the time of a picture, p50, ms."""
    times, embeddings = [], np.random.default_rng(0).standard_normal((1, generator.embedding_size), np.float32)
    for seed in range(TIMED):
        began = time.perf_counter()
        for _ in generator.paint(embeddings, np.array([seed], np.uint64)):
            pass
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times))


def prepare(options: argparse.Namespace) -> Any:
    """Choose module, device, precision and capabilities; return the module.

    Raises
    ------
    ModelError
        TensorRT is missing, or does not build for the capabilities.
    """
    trt = installed((options.module,) if options.module else MODULES)[0]
    options.device = pick_device(options.device)
    own, known = machine(options.device)[1], known_capabilities(trt) if portable(trt) else []
    wrong = [capability for capability in options.capability if capability not in known]
    if wrong:
        raise ModelError(f"--capability: expected some of {', '.join(known) or f'none for {trt.__name__}'}, got {', '.join(wrong)}")
    if known and not options.capability:  # 7.5 only on request: its engines have fewer kernels to choose from
        options.capability = [own] if own in known else [capability for capability in known if capability != "7.5"]
    options.runs_here = not known or own in options.capability
    options.precision = "float16" if options.device.type == "cuda" or not options.runs_here else "float32"
    options.counts = sorted({1, options.batch})
    return trt


def build(options: argparse.Namespace, tell: Tell) -> list[Path]:
    """Build and publish the engines of a model; return their folders.

    Raises
    ------
    RtevoError
        An engine failed; it is not published.
    """
    folder = describe(options.model).at(options.px)
    trt, out = prepare(options), options.out or default_folder(options.model)
    tell(f"{trt.__name__} {trt.__version__}" + (f", for compute capabilities {', '.join(options.capability)}" if portable(trt) else ""))
    try:
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=out))
    except OSError as problem:
        raise ModelError(f"--out {out}: expected a folder that can be written to: {problem}") from problem
    try:
        tell("hashing the model")
        options.mark = fingerprint(hash_files(options.model))
        verified = build_plans(trt, export_all(folder, options, work, tell), options, out, tell)
        keys = {}
        for count in options.counts:
            key = machine_key(trt, folder, settings_of(options), count, options.mark)
            keys[count] = replace(key, gpu="", capabilities=tuple(options.capability)) if portable(trt) else key
            shutil.copy(work / "vae.plan", work / "vae-copy.plan")
            plans = {"unet": work / f"unet-{count}.plan", "vae": work / "vae-copy.plan"}
            publish(work / "made", keys[count], plans, {name: verified[name] for name in (f"unet-{count}", "vae")})
        if options.runs_here:
            figures = prove(folder, options, work / "made", tell)
            for key in keys.values():
                record_timing(work / "made" / key.name, timed_on(options.device), figures)
        else:
            tell("not run here: run python build/engine.py MODEL_DIR --time on the computer that will paint, before backend auto uses it")
        return [put(work / "made" / key.name, out) for key in keys.values()]
    finally:
        if options.keep_onnx:
            tell(f"ONNX files are in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def build_plans(trt: Any, jobs: dict[str, Job], options: argparse.Namespace, out: Path, tell: Tell) -> dict[str, dict[str, Any]]:
    """Build every engine beside its ONNX file; if they run here, return the comparison of their outputs with torch's."""
    gc.collect()
    if options.device.type == "cuda":
        torch.cuda.empty_cache()
    verified: dict[str, dict[str, Any]] = {}
    for name, job in jobs.items():
        tell(f"{name}: building (level {options.level}; minutes)")
        began, plan = time.monotonic(), job.file.with_suffix(".plan")
        run_builder(trt, job.file, plan, options, out / f"{name}.timing", tell)
        verified[name] = {"build_s": round(time.monotonic() - began, 1)}
        said = ""
        if options.runs_here:
            verified[name] |= compare(run_engine(trt, plan, job, options.device), job.wanted)
            judge(name, verified[name], options.precision)
            said = f", relative error {max(verified[name]['relative_error']):.2g}"
        tell(f"{name}: built in {verified[name]['build_s']:g} s{said}")
    return verified


def run_builder(trt: Any, onnx: Path, plan: Path, options: argparse.Namespace, timing_cache: Path, tell: Tell) -> None:
    """Build one engine with ``builder.py`` in a process of its own.

    Raises
    ------
    ModelError
        TensorRT failed, with its own reason, or crashed.
    """
    command = [sys.executable, str(Path(__file__).with_name("builder.py")), trt.__name__, str(onnx), str(plan), "--level", options.level]
    command += ["--workspace-gib", options.workspace_gib, "--timing-cache", timing_cache]
    command += ["--capability", *options.capability] if options.capability else []
    last = "nothing"
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.strip()
            tell(f"{onnx.stem}: {last}")
    if process.returncode:
        crashed = f"{trt.__name__} {trt.__version__} crashed (signal {-process.returncode}) after: " if process.returncode < 0 else ""
        raise ModelError(f"{onnx.stem}: {crashed}{last}")


def put(made: Path, out: Path) -> Path:
    """Move a finished folder to the sessions' folder of engines, in place of an older one."""
    own, old = out / made.name, made.with_name("old")
    if own.exists():
        own.rename(old)
    made.rename(own)
    shutil.rmtree(old, ignore_errors=True)
    return own


def time_engines(options: argparse.Namespace, tell: Tell) -> list[Path]:
    """Verify and time existing engines on this machine; return their folders."""
    folder = describe(options.model).at(options.px)
    options.device, options.precision = pick_device(options.device), "auto"
    options.mark = fingerprint(hash_files(options.model))
    engines = options.out or default_folder(options.model)
    found = find_engines(folder, settings_of(options, engines))[1]
    figures = prove(folder, options, engines, tell)
    for own in found.values():
        record_timing(own, timed_on(options.device), figures)
    return list(found.values())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python build/engine.py", description="Build the TensorRT engines of a model.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="diffusers folder")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of engines (default: MODEL_DIR/engines)")
    parser.add_argument("--module", choices=MODULES, help="which TensorRT (default: the first of these that is installed)")
    parser.add_argument("--time", action="store_true", help="build nothing: verify and time the existing engines on this machine")
    parser.add_argument(
        "--capability", nargs="+", default=[], metavar="X.Y",
        help="compute capabilities that TensorRT for RTX builds for (default: this GPU's, and without one all from 8.0 on)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="also build for N images at once ([generator] batch)")
    parser.add_argument("--px", type=int, default=0, help="longer side of an image, for example 768 or 512 (default: the model's own)")
    parser.add_argument("--unguided", action="store_true", help="for guidance_scale = 1")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--level", type=int, default=3, choices=range(6), help="effort of the builder; higher takes longer (default: 3)")
    parser.add_argument("--workspace-gib", type=float, default=8.0, metavar="GIB", help="GPU memory that kernels may use (default: 8)")
    parser.add_argument(
        "--skip-onnx-check", action="store_true", help="do not run the ONNX files on the CPU; the engines are compared anyway"
    )
    parser.add_argument("--keep-onnx", action="store_true", help="keep the ONNX files")
    options = parser.parse_args(arguments)
    if options.batch < 1:
        parser.error(f"--batch: expected >= 1, got {options.batch}")
    options.mark = ""
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    options = parse(arguments)
    began = time.monotonic()
    work = time_engines if options.time else build
    try:
        for made in work(options, lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)):
            print(f"{'verified and timed' if options.time else 'published'}: {made}")
    except (RtevoError, ImportError) as problem:
        hint = ": pip install 'rtevo[tensorrt]'" if isinstance(problem, ImportError) else ""
        print(f"error: {problem}{hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
