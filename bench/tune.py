"""The most steps that hold the cadence on this GPU: ``python -m bench.tune MODEL_DIR ... --cadence 4``.

Backends x schedulers x steps x sizes are timed, one image at a time, as a session paints. Quality is how near a picture is, in the space of
the image embeddings, to the one that many steps paint of the same embedding and noise; it does not depend on the backend, so the fastest
one that runs is asked. (Perceptual distances such as LPIPS need weights that would have to be downloaded.) What holds the cadence at the
99th percentile, with a margin, is eligible; of that the most steps are taken, and among equals the picture nearest to the reference.

Several models are compared by how well they do what they are asked: how much nearer a picture re-encodes to the embedding it was painted
from than to those of other pictures (*heard*; embeddings are those of pictures that the model has painted). Of each model what was chosen
as above stands for it. ``DIR@GUIDANCE`` names a model with its own guidance; one without (``@1``) is tried with schedulers for few steps.

Leaves ``tune.json``, ``tune.md`` (the table), ``tune.png`` (time against quality) and ``generator.toml``, the section for the session file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.generator import machine, spread
from rtevo.config import Config, dump
from rtevo.config import Generator as Section
from rtevo.errors import RtevoError
from rtevo.generate import GeneratorSettings, describe, load

__all__ = ["Trial", "choose", "section", "table", "tune"]

STEPS = (4, 6, 8, 10, 12, 15, 18, 21, 25, 30, 40, 50)
SCHEDULERS = ("ddim", "pndm", "dpm++2m", "unipc")
FEW_STEPS = ("euler", "lcm")
REFERENCE_STEPS = 50
TOO_SLOW = 2.0  # times the cadence: more steps than those that take so long are not tried

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One combination and what was measured.

    Parameters
    ----------
    backend, scheduler : str
    steps, px : int
    p50_ms, p99_ms, max_ms : float
        Of one image, from the request to its pixels and embedding.
    similarity : float
        Mean cosine similarity to the reference picture's embedding.
    heard : float
        How much nearer pictures are to the embeddings asked for than to the others', mean difference of cosine similarities.
    model : str
        Model folder.
    guidance : float
    """

    backend: str
    scheduler: str
    steps: int
    px: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    similarity: float
    heard: float = 0.0
    model: str = ""
    guidance: float = 3.0


def time_one(generator: Any, repeats: int) -> dict[str, float]:
    """Paint one image again and again; ms."""
    rng, times = np.random.default_rng(0), []
    for k in range(repeats):
        embedding = rng.standard_normal((1, generator.embedding_size), np.float32)
        started = time.perf_counter()
        for _ in generator.paint(embedding, np.array([k], np.uint64)):
            pass
        times.append(1e3 * (time.perf_counter() - started))
    return spread(times)


def encoded(generator: Any, asked: np.ndarray) -> np.ndarray:
    """Embeddings (n, e) that the pictures of some embeddings re-encode to."""
    return np.array([painted.embedding for painted in generator.paint(asked, np.arange(len(asked), dtype=np.uint64))], np.float64)


def cosines(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Cosine similarities (n, n) of embeddings."""
    one, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (found, wanted))
    product: np.ndarray = one @ other.T
    return product


class Quality:
    """What the pictures of one model and size are judged by; known ones are kept, since they do not depend on the backend."""

    def __init__(self, generator: Any, scheduler: str, options: argparse.Namespace, tell: Tell) -> None:
        tell(f"painting {options.pictures} reference pictures with {options.reference} steps")
        generator.reschedule(scheduler, options.reference)
        generator.warm_up()
        drawn = np.random.default_rng(1).standard_normal((options.pictures, generator.embedding_size), np.float32)
        self.asked = encoded(generator, drawn).astype(np.float32)
        self.wanted = encoded(generator, self.asked)
        self._known: dict[tuple[str, int], tuple[float, float]] = {}

    def of(self, generator: Any, scheduler: str, steps: int) -> tuple[float, float]:
        """Similarity to the reference, and how well the embeddings are heard."""
        if (scheduler, steps) not in self._known:
            found = encoded(generator, self.asked)
            heard = cosines(found, self.asked)
            others = (heard.sum() - np.trace(heard)) / max(1, heard.size - len(heard))
            self._known[scheduler, steps] = float(np.diag(cosines(found, self.wanted)).mean()), float(np.diag(heard).mean() - others)
        return self._known[scheduler, steps]


def tune(options: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """Measure everything; a backend that cannot be used is reported, and the others continue.

    Returns
    -------
    dict
        ``machine``, ``trials`` (list of :class:`Trial`), ``refused`` (why, by backend).
    """
    trials: list[Trial] = []
    found: dict[str, Any] = {"machine": {}, "trials": trials, "refused": {}}
    for model, guidance in options.models:
        schedulers = options.schedulers or (SCHEDULERS if guidance > 1 else FEW_STEPS)
        for px in options.px:
            quality: list[Quality] = []
            for backend in options.backends:
                settings = GeneratorSettings(
                    model, backend=backend, device=options.device, px=px, guidance_scale=guidance, scheduler=schedulers[0]
                )
                name = f"{model.name} {backend}" if len(options.models) > 1 else backend
                try:
                    with load(settings, lambda text, name=name: tell(f"{name}: {text}")) as generator:
                        generator.warm_up()
                        found["machine"] = machine(generator.device)  # type: ignore[attr-defined]
                        for trial in measure(generator, schedulers, settings, options, quality, tell):
                            trials.append(trial)
                except (RtevoError, RuntimeError) as problem:
                    found["refused"][name] = str(problem)
                    tell(f"{name}: cannot be used: {problem}")
    return found


def measure(
    generator: Any, schedulers: Iterable[str], settings: GeneratorSettings, options: argparse.Namespace, quality: list[Quality], tell: Tell
) -> Iterable[Trial]:
    """Try every scheduler and number of steps with one loaded model; what its pictures are judged by is put into `quality`, once."""
    px, backend = max(generator.image_size), settings.backend
    if not quality:
        quality.append(Quality(generator, settings.scheduler, options, tell))
    for scheduler in schedulers:
        for steps in sorted(options.steps):
            try:
                generator.reschedule(scheduler, steps)
            except RtevoError as problem:
                tell(f"{backend} {scheduler}: left out: {problem}")
                break
            generator.warm_up()
            timed = time_one(generator, options.repeats)
            near, heard = quality[0].of(generator, scheduler, steps)
            tell(
                f"{backend} {px} px {scheduler} {steps} steps: p50 {timed['p50']:.1f}, p99 {timed['p99']:.1f} ms; similarity {near:.4f}, "
                f"heard {heard:.4f}"
            )
            yield Trial(
                backend, scheduler, steps, px, timed["p50"], timed["p99"], timed["max"], near, heard, str(settings.model_path),
                settings.guidance_scale,
            )  # fmt: skip
            if timed["p50"] > TOO_SLOW * 1e3 * options.cadence:
                break


def choose(trials: Iterable[Trial], cadence_s: float, margin: float) -> Trial | None:
    """Of what holds the cadence at p99 with the margin: the largest size, then the most steps, the nearest picture, the least time.

    Of several models the one whose choice hears its embeddings best.
    """
    limit_ms = 1e3 * cadence_s * (1 - margin)
    holding = [trial for trial in trials if trial.p99_ms <= limit_ms]
    chosen = [
        max((t for t in holding if t.model == model), key=lambda t: (t.px, t.steps, round(t.similarity, 4), -t.p99_ms))
        for model in dict.fromkeys(t.model for t in holding)
    ]
    return max(chosen, key=lambda t: t.heard, default=None)


def section(trial: Trial, options: argparse.Namespace) -> str:
    """The [generator] section of a session file that paints as a trial did."""
    model = Path(trial.model)
    own_px = max(describe(model).image_size)
    wanted = Section(
        unclip_model_path=str(model.resolve()),
        backend=trial.backend,
        scheduler=trial.scheduler,
        steps=trial.steps,
        guidance_scale=trial.guidance,
        px=0 if trial.px == own_px else trial.px,
        devices=(options.device,),
    )
    lines = dump(replace(Config(), generator=wanted)).splitlines()
    start = lines.index("[generator]")
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("[")), len(lines))
    return "\n".join(lines[start:end]).rstrip() + "\n"


def table(found: dict[str, Any], chosen: Trial | None, cadence_s: float, margin: float) -> str:
    """The measurements as a Markdown table; what is chosen is marked."""
    lines = [
        f"{found['machine'].get('device', 'nothing ran')}, one image every {cadence_s:g} s, margin {margin:.0%}",
        "",
        "| model | backend | px | scheduler | steps | p50 ms | p99 ms | max ms | similarity | heard | |",
        "|---" * 11 + "|",
    ]
    for t in found["trials"]:
        mark = "chosen" if t == chosen else "" if t.p99_ms <= 1e3 * cadence_s * (1 - margin) else "too slow"
        lines.append(
            f"| {Path(t.model).name} | {t.backend} | {t.px} | {t.scheduler} | {t.steps} | {t.p50_ms:.1f} | {t.p99_ms:.1f} | "
            f"{t.max_ms:.1f} | {t.similarity:.4f} | {t.heard:.4f} | {mark} |"
        )
    lines += [f"\n{backend} cannot be used: {why}" for backend, why in found["refused"].items()]
    return "\n".join(lines)


def draw(trials: list[Trial], chosen: Trial | None, cadence_s: float, margin: float, file: Path) -> None:
    """Time against quality: a line for each backend, scheduler and size, a dot for each number of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    groups = sorted({(t.scheduler, t.backend, t.px, t.model) for t in trials})
    schedulers, backends = sorted({g[0] for g in groups}), sorted({g[1:] for g in groups})
    styles = dict(zip(backends, ["-o", "--s", ":^", "-.D"] * len(backends), strict=False))
    models = {t.model for t in trials}
    for scheduler, backend, px, model in groups:
        group = (scheduler, backend, px, model)
        own = sorted((t for t in trials if (t.scheduler, t.backend, t.px, t.model) == group), key=lambda t: t.steps)
        color = f"C{schedulers.index(scheduler)}"
        x, y = [t.p99_ms for t in own], [t.similarity for t in own]
        label = f"{scheduler}, {backend}, {px} px" + (f", {Path(model).name}" if len(models) > 1 else "")
        axes.plot(x, y, styles[backend, px, model], color=color, markersize=4, linewidth=1.2, label=label)
        if backend == groups[0][1]:
            for t in own:
                axes.annotate(str(t.steps), (t.p99_ms, t.similarity), xytext=(3, -9), textcoords="offset points", fontsize=7, color=color)
    limit = 1e3 * cadence_s
    axes.axvspan(limit * (1 - margin), limit, color="#f0d9a8", alpha=0.6, linewidth=0, label="margin")
    axes.axvline(limit, color="#b42318", linewidth=1, label=f"cadence {cadence_s:g} s")
    if chosen:
        axes.plot(
            chosen.p99_ms,
            chosen.similarity,
            "o",
            markersize=13,
            markerfacecolor="none",
            color="black",
            label=f"chosen: {chosen.steps} steps",
        )
    axes.set(
        xscale="log", xlabel="time of one image, p99, ms (numbers: steps)", ylabel="cosine similarity to the reference picture's embedding"
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    figure.savefig(file)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description="Find the most steps that hold the cadence on this GPU.")
    parser.add_argument("models", nargs="+", type=named, metavar="MODEL_DIR[@GUIDANCE]", help="model folders")
    parser.add_argument("--cadence", type=float, default=4.0, metavar="S", help="an image every so many seconds (default: 4)")
    parser.add_argument("--margin", type=float, default=0.2, help="share of the cadence that must be left (default: 0.2)")
    parser.add_argument("--backends", nargs="+", default=["tensorrt", "compiled", "eager"], metavar="NAME", help="the fastest first")
    parser.add_argument("--schedulers", nargs="+", choices=(*SCHEDULERS, *FEW_STEPS), help="(default: by the model's guidance)")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), metavar="N")
    parser.add_argument("--px", nargs="+", type=int, default=[0], help="sizes of an image; 0: the model's own (default)")
    parser.add_argument("--guidance", type=float, default=3.0, help="of models that are named without (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--repeats", type=int, default=30, metavar="N", help="images that are timed of each combination (default: 30)")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="pictures that quality is judged by (default: 8)")
    parser.add_argument("--reference", type=int, default=REFERENCE_STEPS, metavar="N", help="steps of the reference pictures (default: 50)")
    parser.add_argument("--out", type=Path, default=Path("tune"), metavar="DIR", help="where results go (default: tune/)")
    options = parser.parse_args(arguments)
    for name, good, rule in (
        ("cadence", options.cadence > 0, "> 0"),
        ("margin", 0 <= options.margin < 1, ">= 0 and < 1"),
        ("repeats", options.repeats >= 1, ">= 1"),
        ("pictures", options.pictures >= 1, ">= 1"),
        ("steps", min(options.steps) >= 1, ">= 1"),
    ):
        if not good:
            parser.error(f"--{name}: expected {rule}, got {getattr(options, name)}")
    options.models = [(model, options.guidance if guidance is None else guidance) for model, guidance in options.models]
    return options


def named(text: str) -> tuple[Path, float | None]:
    """Read ``MODEL_DIR`` or ``MODEL_DIR@GUIDANCE``."""
    folder, at, guidance = text.rpartition("@")
    if not at or Path(text).is_dir():
        return Path(text), None
    try:
        return Path(folder), float(guidance)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected MODEL_DIR or MODEL_DIR@GUIDANCE, got {text!r}") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse(arguments)
    began = time.monotonic()
    try:
        for model, _ in options.models:
            describe(model)
        options.out.mkdir(parents=True, exist_ok=True)
        found = tune(options, lambda text: print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True))
    except (RtevoError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    chosen = choose(found["trials"], options.cadence, options.margin)
    text = table(found, chosen, options.cadence, options.margin)
    report = {**found, "trials": [asdict(t) for t in found["trials"]], "chosen": chosen and asdict(chosen), "cadence_s": options.cadence}
    (options.out / "tune.json").write_text(json.dumps(report | {"margin": options.margin}, indent=1) + "\n", encoding="utf-8")
    (options.out / "tune.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if found["trials"]:
        draw(found["trials"], chosen, options.cadence, options.margin, options.out / "tune.png")
    if chosen is None:
        print(f"nothing holds one image every {options.cadence:g} s with a margin of {options.margin:.0%}", file=sys.stderr)
        return 1
    (options.out / "generator.toml").write_text(section(chosen, options), encoding="utf-8")
    print(f"\n{section(chosen, options)}\nwritten to {options.out}: tune.json, tune.md, tune.png, generator.toml")
    return 0


if __name__ == "__main__":
    sys.exit(main())
