"""What painting costs on this machine: ``python -m bench.generator MODEL_DIR``.

Every backend paints the same requests as the session does; beside them the diffusers pipeline is called as one would call it without this
project. Work is counted in floating-point operations of the networks (matrix products, convolutions and attention, by torch's counter),
and its rate given as a share of what a large half-precision matrix product reaches on the same device in the same run. Pictures are
compared with the reference backend's before anything is timed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing as mp
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rtevo.errors import ModelError, RtevoError
from rtevo.generate import GeneratorSettings, describe, load
from rtevo.generate.compiled import CompiledGenerator

__all__ = ["gemm_peak", "machine", "measure", "paint_ms", "work"]

STEPS = (10, 15, 21)
"""Unless others are asked for."""
POPULATIONS = (4, 6, 12)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gemm_peak(device: torch.device, side: int = 8192, repeats: int = 20) -> float:
    """Rate of a large matrix product on random data, FLOP/s: half precision on a GPU, single on a CPU (and smaller)."""
    side = side if device.type == "cuda" else 1024
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn((side, side), device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(repeats + 3):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(times[3:])


def work(generator: Any) -> dict[str, float]:
    """Floating-point operations of one guided step, one decoded picture and one encoded picture of an eager generator."""
    from torch.utils.flop_counter import FlopCounterMode

    counts: dict[str, float] = {}
    condition, noise, draws = generator._conditions(torch.zeros((1, generator.embedding_size)), [0])
    with torch.no_grad():
        for name, run in (
            ("one", lambda: generator._model.denoise(condition, noise, draws, 1)),
            ("two", lambda: generator._model.denoise(condition, noise, draws, 2)),
            ("decode", lambda: generator._decode(noise.to(generator.device, generator.dtype))),
            ("encode", lambda: generator._encode(np.zeros((*generator.image_size, 3), np.uint8))),
        ):
            with FlopCounterMode(display=False) as counter:
                run()
            counts[name] = counter.get_total_flops()
    return {"step": counts["two"] - counts["one"], "decode": counts["decode"], "encode": counts["encode"]}


def paint_ms(generator: Any, count: int, repeats: int) -> dict[str, Any]:
    """Paint `count` embeddings `repeats` times: ms until the first image and until all are there, p50, p99 and max."""
    embeddings = np.random.default_rng(0).standard_normal((count, generator.embedding_size), np.float32)
    first, whole = [], []
    for k in range(repeats):
        started = time.perf_counter()
        stream = generator.paint(embeddings, np.arange(count, dtype=np.uint64) + k)
        next(stream)
        first.append(1e3 * (time.perf_counter() - started))
        for _ in stream:
            pass
        whole.append(1e3 * (time.perf_counter() - started))
    return {"first": spread(first), "all": spread(whole)}


def apart(generator: Any, reference: list[Any], pictures: int = 8) -> float:
    """Mean difference of pictures from the reference backend's, grey levels; the first generator asked for paints those."""
    painter = getattr(generator, "_generator", generator)  # the plain pipeline draws other noise
    asked = np.random.default_rng(5).standard_normal((pictures, generator.embedding_size), np.float32)
    found = [painted.pixels.astype(np.float64) for painted in painter.paint(asked, np.arange(pictures, dtype=np.uint64))]
    if not reference:
        reference += found
    return round(float(np.mean([np.abs(a - b).mean() for a, b in zip(found, reference, strict=True)])), 3)


def graph_ms(graph: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median time of one run of a captured graph, ms."""
    times = []
    with torch.no_grad():
        for _ in range(repeats):
            synchronize(device)
            started = time.perf_counter()
            graph()
            synchronize(device)
            times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times), 3)


def _painter(device: str, own: int, options: argparse.Namespace, barrier: Any, results: Any) -> None:
    """One process of :func:`several`: paints its share, then everything."""
    count, shares = max(POPULATIONS), len(options.devices)
    settings = replace(_settings(options, device), repeatable=True)
    with _make(options.several_backend, settings, lambda _: None) as generator:
        generator.warm_up()
        embeddings = np.random.default_rng(0).standard_normal((count, generator.embedding_size), np.float32)
        seeds = np.arange(count, dtype=np.uint64)
        times = []
        for _ in range(3):
            barrier.wait(600)
            started = time.perf_counter()
            mine = [hashlib.sha256(p.pixels.tobytes()).hexdigest() for p in generator.paint(embeddings[own::shares], seeds[own::shares])]
            times.append(time.perf_counter() - started)
        barrier.wait(600)
        if own:  # the first alone
            barrier.wait(600)
        started = time.perf_counter()
        every = [hashlib.sha256(p.pixels.tobytes()).hexdigest() for p in generator.paint(embeddings, seeds)]
        alone = time.perf_counter() - started
        if not own:
            barrier.wait(600)
        results.put((own, statistics.median(times), mine, alone, every))


def several(options: argparse.Namespace) -> dict[str, Any]:
    """Deal one generation to several devices, a process for each, as a session does; compare with one device doing all of it."""
    context = mp.get_context("spawn")
    barrier, results = context.Barrier(len(options.devices)), context.Queue()
    processes = [
        context.Process(target=_painter, args=(device, own, options, barrier, results)) for own, device in enumerate(options.devices)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=900) for _ in processes)
    for process in processes:
        process.join()
    count, shares = max(POPULATIONS), len(options.devices)
    together, alone = max(f[1] for f in found), found[0][3]
    dealt = [found[k % shares][2][k // shares] for k in range(count)]
    return {
        "devices": options.devices,
        "images_per_s": round(count / together, 3),
        "images_per_s_alone": round(count / alone, 3),
        "speed_up": round(alone / together, 3),
        "identical": dealt == found[0][4] and all(f[4] == found[0][4] for f in found),
        "identical_pictures": sum(a == b for a, b in zip(dealt, found[0][4], strict=True)),
    }


def spread(values: list[float]) -> dict[str, float]:
    """p50, p99 and max."""
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(max(values), 3), "n": len(values)}


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    import diffusers
    import transformers

    found: dict[str, Any] = {"platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    found |= {"diffusers": diffusers.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    else:
        found["device"] = "cpu"
    return found


def measure(make: Callable[[], Any], result: dict[str, Any], repeats: int, steps: Sequence[int], reference: list[Any]) -> dict[str, Any]:
    """Load one backend, let it compare its picture with the reference's, and time it.

    The first one, which is not compiled, also has its work counted, into `result`.

    Returns
    -------
    dict
        Seconds to load and to warm up; mean difference of some pictures from those in `reference`, which the first one paints;
        milliseconds of one image by its steps, and of one step; latency of the first image; images/s by the size of a generation;
        the share of the matrix product's rate; most memory used.
    """
    started = time.perf_counter()
    with make() as generator:
        found: dict[str, Any] = {"load_s": round(time.perf_counter() - started, 1)}
        if "machine" not in result:
            result["machine"] = machine(generator.device)
            result["gemm_tflops"] = round(gemm_peak(generator.device) / 1e12, 3)
            result["work_tflop"] = {k: round(v / 1e12, 9) for k, v in work(generator._generator).items()}
        counts, peak = {k: 1e12 * v for k, v in result["work_tflop"].items()}, 1e12 * result["gemm_tflops"]
        started = time.perf_counter()
        try:
            generator.warm_up()
        except ModelError as problem:
            if "expected the reference's picture" not in str(problem):
                raise
            found["differs"] = str(problem)  # of trained weights that would be the end; random ones amplify rounding
            generator._verified = True
            generator.warm_up()
        found |= {"warm_up_s": round(time.perf_counter() - started, 1), "description": generator.description}
        found["apart"] = apart(generator, reference)
        scheduler, own = generator.settings.scheduler, generator.settings.steps
        found["image_ms"] = {}
        for count in steps:
            generator.reschedule(scheduler, count)
            generator.warm_up()
            found["image_ms"][count] = paint_ms(generator, 1, repeats)["all"]
        few, many = min(steps), max(steps)
        step_ms = (found["image_ms"][many]["p50"] - found["image_ms"][few]["p50"]) / max(1, many - few)
        found["step_ms"] = round(step_ms, 3)
        found["step_share_of_peak"] = round(counts["step"] / (step_ms * 1e-3) / peak, 3) if step_ms else 0.0
        flops = few * counts["step"] + counts["decode"] + counts["encode"]
        found["image_share_of_peak"] = round(flops / (found["image_ms"][few]["p50"] * 1e-3) / peak, 3)
        generator.reschedule(scheduler, own)
        generator.warm_up()
        if hasattr(generator, "_loops"):
            found["parts_ms"] = {
                "loop": graph_ms(generator._loops[1]._graph, generator.device, repeats),
                "decode_and_encode": graph_ms(generator._look, generator.device, repeats),
            }
        found["generation"] = {}
        for population in POPULATIONS:
            timed = paint_ms(generator, population, max(2, repeats // population))
            found["generation"][population] = timed | {"images_per_s": round(1e3 * population / timed["all"]["p50"], 3)}
        if generator.device.type == "cuda":
            found["memory_gib"] = round(torch.cuda.max_memory_allocated(generator.device) / 2**30, 2)
            torch.cuda.reset_peak_memory_stats(generator.device)
    return found


class Plain:
    """The diffusers pipeline called as one would call it: embeddings in, Pillow images out, then re-encoded."""

    def __init__(self, generator: Any) -> None:
        self.settings, self.device, self.embedding_size = generator.settings, generator.device, generator.embedding_size
        self._generator, self._pipe = generator, generator._pipe
        self.description = f"diffusers, {self._generator.description}"

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        self._generator.close()

    def warm_up(self) -> None:
        """Paint one."""
        list(self.paint(np.zeros((1, self.embedding_size), np.float32), np.zeros(1, np.uint64)))

    def reschedule(self, scheduler: str, steps: int) -> None:
        """Change the steps."""
        self._generator.reschedule(scheduler, steps)
        self.settings = self._generator.settings

    def paint(self, embeddings: Any, seeds: Any) -> Any:
        """One image after the other."""
        model, settings = self._generator._model, self.settings
        for embedding, seed in zip(torch.from_numpy(embeddings), seeds, strict=True):
            draw = torch.Generator(self.device).manual_seed(int(seed))
            noise = torch.randn((1, self.embedding_size), generator=torch.Generator().manual_seed(0))
            told = model.condition(embedding[None], noise).to(self.device, self._generator.dtype)
            if hasattr(model, "prompts"):  # an IP-Adapter's
                both = [torch.zeros_like(told), told] if settings.guidance_scale > 1 else [told]
                given = {**model.prompts, "ip_adapter_image_embeds": [torch.cat(both)[:, None]]}
            elif hasattr(model, "prompt"):
                given = {"image_embeds": told, "prompt_embeds": model.prompt, "negative_prompt_embeds": model.prompt}
            else:
                given = {"image_embeds": told, "negative_image_embeds": model.nothing}
            height, width = self._generator.image_size
            with torch.inference_mode():
                picture = self._pipe(
                    num_inference_steps=settings.steps,
                    guidance_scale=settings.guidance_scale,
                    generator=draw,
                    height=height,
                    width=width,
                    **given,
                ).images[0]
                yield self._generator._encode(np.asarray(picture))


def run(options: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure every requested backend; a failure is one line, and the others continue."""
    base = _settings(options, options.device)
    folder = describe(options.model).at(options.px)
    started = time.perf_counter()
    result: dict[str, Any] = {"model": options.model.name, "kind": folder.kind, "size": list(folder.image_size), "backends": {}}
    result["steps"] = list(options.steps)
    reference: list[Any] = []
    for backend in ("diffusers", *options.backends):
        if time.perf_counter() - started > options.budget:
            result["backends"][backend] = {"error": f"not started: the budget of {options.budget:g} s was spent"}
            continue
        tell(f"{backend}: loading")
        try:
            result["backends"][backend] = measure(
                lambda name=backend: _make(name, base, tell), result, options.repeats, options.steps, reference
            )
            tell(f"{backend}: {result['backends'][backend]['image_ms']}")
        except Exception as problem:  # whatever a compiler or a driver may raise: the others are measured all the same
            result["backends"][backend] = {"error": str(problem)[:2000]}
            tell(f"{backend}: {problem}")
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.devices:
        tell(f"{' and '.join(options.devices)} together")
        result["several"] = several(options)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _settings(options: argparse.Namespace, device: str) -> GeneratorSettings:
    return GeneratorSettings(
        model_path=options.model,
        steps=min(options.steps),
        guidance_scale=options.guidance,
        scheduler=options.scheduler,
        device=device,
        px=options.px,
    )


def _make(name: str, base: GeneratorSettings, tell: Callable[[str], None]) -> Any:
    """Load a backend; ``as-it-comes`` is the compiled one with diffusers' networks as they come."""
    if name == "diffusers":
        return Plain(load(replace(base, backend="eager"), tell))
    if name == "as-it-comes":
        return CompiledGenerator(describe(base.model_path), base, tell, rewritten=False)  # type: ignore[arg-type]
    return load(replace(base, backend=name), tell)


def table(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        f"{result['machine']['device']}, torch {result['machine']['torch']}, {result['size'][1]} x {result['size'][0]} px, "
        f"matrix product {result['gemm_tflops']:g} TFLOP/s, {result['work_tflop']['step']:g} TFLOP a guided step",
        "",
        f"| backend | ms a step | ms, {' | '.join(map(str, result['steps']))} steps | first of 4 | images/s of 4 | of 6 | of 12 "
        "| step, of peak | image | GiB | grey levels from eager |",
        "|---" * (10 + len(result["steps"])) + "|",
    ]
    for name, found in result["backends"].items():
        if "error" in found:
            lines.append(f"| {name} | {found['error'][:120]} |" + " |" * (8 + len(result["steps"])))
            continue
        image, generation = found["image_ms"], found["generation"]
        cells = [name, f"{found['step_ms']:.2f}", *(f"{image[s]['p50']:.1f} (p99 {image[s]['p99']:.1f})" for s in image)]
        cells += [f"{generation[4]['first']['p50']:.1f}", *(f"{generation[p]['images_per_s']:.2f}" for p in POPULATIONS)]
        cells += [f"{found['step_share_of_peak']:.0%}", f"{found['image_share_of_peak']:.0%}", str(found.get("memory_gib", "-"))]
        cells.append(f"{found['apart']:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    if "several" in result:
        lines += ["", json.dumps(result["several"])]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.generator", description="Measure what painting costs on this machine.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="model folder (python -m bench.random_model writes one)")
    parser.add_argument("--backends", nargs="+", default=["eager", "compiled"], metavar="NAME", help="backends (default: eager compiled)")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), metavar="N", help="steps that are timed (default: 10 15 21)")
    parser.add_argument("--scheduler", default="ddim", help="scheduler of all of them (default: ddim)")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--devices", nargs="+", default=[], metavar="NAME", help="also deal a generation to these devices together")
    parser.add_argument("--several-backend", default="compiled", metavar="NAME", help="backend for --devices (default: compiled)")
    parser.add_argument("--px", type=int, default=0, help="side of an image (default: the model's own)")
    parser.add_argument("--repeats", type=int, default=20, help="times that each request is painted")
    parser.add_argument("--budget", type=float, default=1e9, metavar="S", help="start no further backend after this many seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    try:
        result = run(options, lambda text: print(f"{time.perf_counter() - began:6.1f} s  {text}", file=sys.stderr, flush=True))
    except RtevoError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
