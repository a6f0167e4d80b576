"""What evolution gains a minute of scanning where it looks at the series itself, and where it looks at scores, over cadence.

``python bench/bench_direct.py [--table NAME ...] [--seeds N] [--jobs N] [--runs FILE] [--out FILE] [--figure FILE]``; every run is a line
of FILE, and what it holds is not run again. ``--cost`` times an ask after 20 minutes instead.

A session is simulated as in ``bench/loops.py``: a direction in 100 latent dimensions, what an image has of its own half the spread of
random ones, gamma responses, AR(1) noise, drift of some minutes, small motion; the filter that sessions have, the course that sessions
have. Gain is the mean response of the best images, the last ten, as if images were 4 s apart, in standard deviations of random ones. An
image is on for three quarters of the time between two onsets, the rest is washout. Contrast: spread of the responses to images 4 s apart,
in noise standard deviations of a volume.

Worlds, by what becomes of a response where images are closer:

- additive: nothing; a brief image drives the brain as much as a long one.
- published: a response is divided by one plus 0.95 times the sum over all images before of exp(-seconds / 2.8), constants of our choice.
  A second image 1 s and 6 s after a first has 0.60 and 0.90 of its response (measured: 0.55 and 0.90, S. A. Huettel, G. McCarthy 2000,
  doi:10.1006/nimg.2000.0553), images every 5 s 0.84 of single ones, images every 1 s 0.31: of the size of what is reported for fast
  series (F. M. Miezin et al. 2000, doi:10.1006/nimg.2000.0568; T. D. Wager et al. 2005, doi:10.1016/j.neuroimage.2004.11.008).
- repeated: the same, and repetition suppression: an image loses up to 0.4 of its response to the most similar of the images before it (its
  cosine, as far as positive, times exp(-seconds / 15)).
- lasting: additive, but the brain is driven as long as the image is on: short images have small responses.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cells import drawn_noise, kernel, sampled
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from rtevo.decode.grid import Grid, ResponsePrior
from rtevo.decode.nuisance import Nuisance
from rtevo.decode.separate import Separate
from rtevo.evolve import Course, CourseSettings, Direct, Feedback, Sham, Yoked, create
from rtevo.evolve.series import warm_up
from rtevo.evolve.together import Link
from rtevo.records import Projected

Array = NDArray[np.float64]
SIZE, OWN, BASELINE_S, FINAL, ON = 100, 0.5, 10.0, 10, 0.75
CADENCES_S, CONTRASTS, TRS_S = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0), (0.5, 1.0, 2.0, 4.0), (0.8, 1.5)
SATURATION, RECOVERY_S, USUAL_S, SUPPRESSION, FORGOTTEN_S = 0.95, 2.8, 4.0, 0.4, 15.0


@dataclass(frozen=True)
class Session:
    """One kind of session."""

    strategy: str = "direct"
    cadence_s: float = 4.0
    tr_s: float = 1.5
    contrast: float = 1.0
    minutes: float = 10.0
    world: str = "published"
    known: bool = True
    condition: str = "brain"


def sessions(table: str) -> Iterator[Session]:
    """Give the sessions of a table."""
    if table == "cadence":
        for contrast, tr_s in itertools.product(CONTRASTS, TRS_S):
            yield Session("surrogate", 4.0, tr_s, contrast, 20.0)
            yield from (Session("surrogate", cadence_s, tr_s, contrast) for cadence_s in (2.0, 3.0, 4.0))
            yield from (Session("direct", cadence_s, tr_s, contrast) for cadence_s in CADENCES_S)
    elif table == "world":
        for world in ("additive", "lasting", "repeated"):
            yield from (Session("surrogate", cadence_s, world=world, minutes=minutes) for cadence_s, minutes in ((4.0, 20.0), (4.0, 10.0)))
            yield from (Session("direct", cadence_s, world=world) for cadence_s in (1.0, 2.0, 3.0, 4.0))
    elif table == "learnt":
        for strategy, cadence_s in (
            ("surrogate", 4.0),
            ("surrogate", 2.0),
            ("direct", 1.5),
            ("direct", 2.0),
            ("direct", 3.0),
            ("direct", 4.0),
        ):
            yield Session(strategy, cadence_s, known=False)
    elif table == "controls":
        for condition, cadence_s in itertools.product(("sham", "yoked"), (2.0, 4.0)):
            yield Session("direct", cadence_s, contrast=2.0, condition=condition)


TABLES = ("cadence", "world", "learnt", "controls")


class Brain:
    """A simulated participant: what each image adds to the series."""

    def __init__(self, session: Session, seed: int, volumes: int) -> None:
        rng = np.random.default_rng([seed, 1])
        goal = rng.standard_normal(SIZE)
        self._session, self._goal, self._own = session, goal / np.linalg.norm(goal), np.random.default_rng([seed, 3])
        self.times_s = (np.arange(volumes) + 0.5) * session.tr_s
        self._kernel = kernel("double", 5.0)
        self.series = drawn_noise(rng, "ar", volumes, session.tr_s)
        slow = [np.cos(2 * math.pi * self.times_s / 60 / period + 6.3 * rng.random()) for period in (2.5, 4.0, 7.0)]
        self.series += 0.2 * rng.standard_normal(3) @ np.array(slow) + 0.1 * rng.standard_normal() * self.times_s / 60
        self.motion = 0.005 * rng.standard_normal((volumes, 6))
        self.truth: list[float] = []
        self._onsets: list[float] = []
        self._latents: list[Array] = []

    def show(self, latent: Array, onset_s: float) -> None:
        """Respond to an image."""
        session, image_s = self._session, ON * self._session.cadence_s
        value = float(latent @ self._goal)
        size = session.contrast * (1.0 + value + OWN * self._own.standard_normal())
        ago = onset_s - np.array(self._onsets)
        if session.world in ("published", "repeated"):
            size *= 1.0 + SATURATION / math.expm1(USUAL_S / RECOVERY_S)
            size /= 1.0 + SATURATION * float(np.exp(-ago / RECOVERY_S).sum())
        if session.world == "repeated" and self._latents:
            before = np.array(self._latents[-60:])
            alike = before @ latent / np.linalg.norm(before, axis=1) / np.linalg.norm(latent)
            size *= 1.0 - SUPPRESSION * float((np.maximum(alike, 0.0) * np.exp(-ago[-60:] / FORGOTTEN_S)).max())
        if session.world == "lasting":
            whole = [np.convolve(self._kernel, np.ones(round(on_s / 0.05))).max() for on_s in (image_s, ON * USUAL_S)]
            size *= whole[0] / whole[1]
        rows = np.flatnonzero((self.times_s > onset_s) & (self.times_s < onset_s + 45.0))
        self.series[rows] += size * sampled(self._kernel, self.times_s[rows], np.array([onset_s]), image_s)[:, 0]
        self.truth.append(value)
        self._onsets.append(onset_s)
        self._latents.append(latent)


def play(session: Session, seed: int) -> dict[str, Any]:
    """Run one session."""
    images = int((60 * session.minutes - BASELINE_S) / session.cadence_s / FINAL) * FINAL
    volumes = int((BASELINE_S + images * session.cadence_s) / session.tr_s)
    brain = Brain(session, seed, volumes)
    feedback, partner = Feedback(), None
    if session.condition == "sham":
        feedback = Sham(np.random.default_rng([seed, 4]), np.random.default_rng([seed, 5]))
    elif session.condition == "yoked":
        partner = Session(**{**asdict(session), "condition": "brain"})
        feedback = Yoked([0.0], play(partner, seed + 1000)["volumes"])
    evolver = create(session.strategy, SIZE, FINAL, np.random.default_rng([seed, 2]))
    course = Course(evolver, CourseSettings(images // FINAL, FINAL, "steady", 2), feedback)
    grid = Grid().known(ResponsePrior(0.0, 0.3, 1.0, 0.08)) if session.known else None
    image_s = ON * session.cadence_s
    scorer = Separate(np.array([1.0, -1.0]), session.tr_s, image_s, Nuisance(session.tr_s), known=(np.ones(2), np.ones(2)), grid=grid)
    waiting, shown, used, ask_s = list(course.due()), 0, {}, []
    for index, t_s in enumerate(brain.times_s):
        while shown < images and BASELINE_S + shown * session.cadence_s < t_s + 0.5 * session.tr_s:
            request, onset_s = waiting.pop(0), BASELINE_S + shown * session.cadence_s
            brain.show(request.latent.astype(np.float64), onset_s)
            scorer.add_onset((request.generation, request.candidate), onset_s)
            course.show()
            course.appeared(request.generation, request.candidate, onset_s, image_s)
            shown += 1
            begun = time.process_time()
            waiting += course.due(onset_s)
            ask_s.append(time.process_time() - begun)
        value = brain.series[index]
        pair = np.array([1 + value / math.sqrt(2), 1 - value / math.sqrt(2)], np.float32)  # whose projection is the value
        for score in scorer.add_volume(index, brain.motion[index], pair):
            link = Link.of(score.onset_s, score.measured, score.measured_se, score.neighbours)
            course.score(*score.key, score.score, score.score_se, link)
        if isinstance(evolver, Direct):
            for volume in projected(scorer, session.tr_s):
                used[volume.index] = volume
                course.volume(0, volume)
    truth = np.array(brain.truth)
    return {"gain": float(truth[-FINAL:].mean()), "mean": float(truth.mean()), "ask_ms": 1e3 * max(ask_s), "volumes": used}


def projected(scorer: Separate, tr_s: float) -> Iterator[Projected]:
    """Give the volumes that were used, as the decode stage publishes them."""
    found, noise = scorer.response(), scorer.noise()
    for index, value, motion_mm in scorer.used():
        response = (found.lag_s, found.lag_sd_s, found.width, 1.0)
        yield Projected(index, (index + 0.5) * tr_s, value, tuple(motion_mm.tolist()), *noise, *response)


# --- running ---------------------------------------------------------------------------------------------------------------------------


def _job(job: tuple[Session, int]) -> dict[str, Any]:
    session, seed = job
    with threadpool_limits(1):  # each process has one core
        found = play(session, seed)
    return {**asdict(session), "seed": seed, **{name: found[name] for name in ("gain", "mean", "ask_ms")}}


def _name(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in Session.__dataclass_fields__)


def run(wanted: list[Session], seeds: int, jobs: int, path: Path, within_s: float) -> list[dict[str, Any]]:
    """Run what the file does not have yet, seed after seed, within the time; return all rows."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(*_name(row), row["seed"]) for row in rows}
    todo = [(each, seed) for seed in range(seeds) for each in wanted if (*_name(asdict(each)), seed) not in known]
    begun = time.monotonic()
    with path.open("a", encoding="utf-8") as file, multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for row in pool.imap_unordered(_job, todo):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            if time.monotonic() - begun > within_s:
                break
    return rows


def cell(rows: list[dict[str, Any]], session: Session, name: str = "gain") -> str:
    """Give mean and standard error of a session's runs."""
    values = np.array([row[name] for row in rows if _name(row) == _name(asdict(session))])
    if len(values) < 2:
        return "-"
    return f"{values.mean():.2f} ± {values.std(ddof=1) / math.sqrt(len(values)):.2f} ({len(values)})"


def report(tables: list[str], rows: list[dict[str, Any]]) -> str:
    """Write the tables."""
    lines = []
    for table in tables:
        lines += [
            f"## {table}",
            "",
            "| session | gain (runs) | mean of all images | gain a minute | longest ask, ms |",
            "|---|---|---|---|---|",
        ]
        for session in sessions(table):
            own = [row for row in rows if _name(row) == _name(asdict(session))]
            if own:
                rate, ask_ms = np.mean([row["gain"] for row in own]) / session.minutes, max(row["ask_ms"] for row in own)
                words = (
                    f"{session.strategy}, every {session.cadence_s:g} s, {session.minutes:g} min, TR {session.tr_s:g} s, contrast "
                    f"{session.contrast:g}, {session.world}, response {'known' if session.known else 'learnt'}, {session.condition}"
                )
                lines.append(f"| {words} | {cell(rows, session)} | {cell(rows, session, 'mean')} | {rate:.2f} | {ask_ms:.0f} |")
        lines += ["", overview(rows), differences(rows), ""] if table == "cadence" else [""]
    return "\n".join(lines)


def overview(rows: list[dict[str, Any]]) -> str:
    """Write the gains of the table cadence, a row for each contrast and repetition time."""
    columns = [Session("surrogate", 4.0, minutes=20.0), *(Session("surrogate", cadence_s) for cadence_s in (4.0, 3.0, 2.0))]
    columns += [Session("direct", cadence_s) for cadence_s in reversed(CADENCES_S)]
    heads = [f"{'scores' if each.strategy == 'surrogate' else 'direct'}, {each.cadence_s:g} s" for each in columns]
    lines = [f"| contrast | TR | {heads[0]}, 20 min | " + " | ".join(heads[1:]) + " |", "|---" * (2 + len(heads)) + "|"]
    for contrast, tr_s in itertools.product(CONTRASTS, TRS_S):
        gains = [cell(rows, replace(each, contrast=contrast, tr_s=tr_s)).split(" ±")[0] for each in columns]
        lines.append(f"| {contrast:g} | {tr_s:g} s | " + " | ".join(gains) + " |")
    return "\n".join([*lines, ""])


def differences(rows: list[dict[str, Any]]) -> str:
    """Say how much more each session of the table cadence gains than others of the same participants, mean over contrasts and TRs."""
    gains = {(row["seed"], *_name(row)): row["gain"] for row in rows}
    others = [Session("surrogate", cadence_s, minutes=10.0) for cadence_s in (4.0, 3.0, 2.0)] + [Session("surrogate", minutes=20.0)]
    lines = ["| gain in 10 min, more than scores | every 4 s | every 3 s | every 2 s | every 4 s, 20 min |", "|---|---|---|---|---|"]
    for cadence_s in CADENCES_S:
        cells = []
        for other in others:
            of_seed = {}
            for seed in sorted({row["seed"] for row in rows}):
                own = [replace(Session("direct", cadence_s), tr_s=tr_s, contrast=contrast) for contrast in CONTRASTS for tr_s in TRS_S]
                pairs = [(each, replace(other, tr_s=each.tr_s, contrast=each.contrast)) for each in own]
                found = [[gains.get((seed, *_name(asdict(one)))) for one in pair] for pair in pairs]
                if all(None not in pair for pair in found):
                    of_seed[seed] = np.mean([a - b for a, b in found])
            values = np.array(list(of_seed.values()))
            cells.append(f"{values.mean():+.2f} ± {values.std(ddof=1) / math.sqrt(len(values)):.2f}" if len(values) > 1 else "-")
        lines.append(f"| direct, {cadence_s:g} s | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw gain over cadence, a panel for each contrast."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(CONTRASTS), 3.2), layout="constrained")
    axes = figure.subplots(1, len(CONTRASTS), sharey=True)
    for axis, contrast in zip(axes, CONTRASTS, strict=True):
        for tr_s, colour in zip(TRS_S, ("tab:blue", "tab:orange"), strict=True):
            for strategy, style, label in (("direct", "o-", "direct"), ("surrogate", "s", "scores")):
                for minutes, filled in ((10.0, colour), (20.0, "white")):
                    found = [
                        s for s in sessions("cadence") if (s.strategy, s.tr_s, s.contrast, s.minutes) == (strategy, tr_s, contrast, minutes)
                    ]
                    values = [[row["gain"] for row in rows if _name(row) == _name(asdict(s))] for s in found]
                    points = [
                        (s.cadence_s, np.mean(v), np.std(v, ddof=1) / math.sqrt(len(v)))
                        for s, v in zip(found, values, strict=True)
                        if len(v) > 1
                    ]
                    if points:
                        x, y, error = zip(*points, strict=True)
                        axis.errorbar(
                            x,
                            y,
                            error,
                            fmt=style,
                            color=colour,
                            mfc=filled,
                            capsize=2,
                            ms=5,
                            label=f"{label}, {minutes:g} min, TR {tr_s:g} s",
                        )
        axis.set(title=f"contrast {contrast:g}")
        axis.set_xticks(CADENCES_S, [f"{cadence_s:g}" for cadence_s in CADENCES_S])
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=7)
    axes[0].set_ylabel("gain (SD of random images)")
    figure.supxlabel("seconds from image to image", fontsize=10)
    figure.savefig(path, dpi=100)


def cost() -> None:
    """Time an ask after 20 minutes, 100 dimensions."""
    warm_up()
    for cadence_s, tr_s in ((4.0, 0.8), (2.0, 0.8), (2.0, 1.5)):
        rng, images, volumes = np.random.default_rng(0), int(1200 / cadence_s), int(1200 / tr_s)
        evolver, times_ms = create("direct", SIZE, FINAL, np.random.default_rng(1)), []
        evolver.ask(images)
        for number in range(images):
            evolver.shown(0, (0, number), number, number * cadence_s, ON * cadence_s)
        for index in range(volumes):
            motion_mm = tuple((0.01 * rng.standard_normal(6)).tolist())
            value = float(rng.standard_normal())
            evolver.volume(0, 0, Projected(index, (index + 0.5) * tr_s, value, motion_mm, 0.3, 0.05, 0.0, 0.5, 1.0))
            if index >= volumes - 20:
                begun = time.process_time()
                evolver.ask(1)
                times_ms.append(1e3 * (time.process_time() - begun))
        text = f"p50 {np.median(times_ms):.0f}, largest {max(times_ms):.0f} ms of processor time"
        print(f"an image every {cadence_s:g} s, TR {tr_s:g} s, {images} images in 20 min: an ask takes {text}")


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    parser.add_argument("--seeds", type=int, default=8, help="runs of each session (default 8)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--runs", type=Path, default=Path("direct.jsonl"), help="file of the runs (default direct.jsonl)")
    parser.add_argument(
        "--within", type=float, default=math.inf, metavar="S", help="stop after so long; what is missing is run another time"
    )
    parser.add_argument("--out", type=Path, help="write the tables here, too")
    parser.add_argument("--figure", type=Path, help="draw the table cadence here")
    parser.add_argument("--cost", action="store_true", help="time an ask instead")
    options = parser.parse_args()
    if options.cost:
        cost()
        return 0
    wanted = list(dict.fromkeys(session for table in options.table for session in sessions(table)))
    rows = run(wanted, options.seeds, options.jobs, options.runs, options.within)
    text = report(options.table, rows)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    if options.figure:
        draw(rows, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
