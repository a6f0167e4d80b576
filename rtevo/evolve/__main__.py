"""Command line of evolution: choices for a scan (``plan``), keys of blinded studies (``blind``)."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.command import Parser, command, finite
from rtevo.config import suggested_label
from rtevo.errors import ConfigError
from rtevo.evolve import OF_SCORES, SCHEDULES
from rtevo.evolve import plan as planning
from rtevo.evolve.jobs import add_options, client, run_cases
from rtevo.evolve.rehearse import OBJECTIVES
from rtevo.progress import shown
from rtevo.session.blinding import CONDITIONS, make_secret, scramble

__all__ = ["main"]


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    p = Parser(prog="python -m rtevo.evolve", description="Plan a study's evolution.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_plan(commands)
    b = commands.add_parser(
        "blind",
        help="draw which participant gets which condition, into a key that the operator's sessions read",
        description="Draw conditions in blocks: every block of sessions has each condition once, in random order. The key's codes cannot "
        "be read by accident, and ended sessions reveal at most the last session of their block; but a curious operator can try the "
        "conditions on a code. With --secret only holders of that file can. Keep the secret from those who must stay blind; the "
        "sessions' account must be able to read it.",
    )
    b.add_argument("--participants", nargs="+", required=True, metavar="LABEL")
    b.add_argument("--sessions", nargs="+", default=["01"], metavar="LABEL", help="sessions of each participant (default 01)")
    b.add_argument("--conditions", nargs="+", default=["brain", "sham"], choices=CONDITIONS, help="default: brain sham")
    b.add_argument("--seed", type=int, metavar="N", help="seed, to draw the same order again; it reveals all conditions (default: none)")
    b.add_argument("--secret", type=Path, metavar="FILE", help="encrypt the conditions with the secret in FILE; made if missing")
    b.add_argument("--out", type=Path, required=True, metavar="FILE", help="the key to write; it must not exist yet")
    return p


def _add_plan(commands: Any) -> None:
    c = commands.add_parser(
        "plan",
        help="choose strategy, population and mutation for a scan by simulation",
        description="Simulate sessions with each strategy, schedule, population and mutation, and report which gain most. Gains are "
        "those of the last generation's images, in standard deviations of random images.",
    )
    c.add_argument("--minutes", type=finite, required=True, metavar="M", help="scan time")
    c.add_argument(
        "--cnr",
        type=finite,
        required=True,
        metavar="X",
        help="contrast-to-noise ratio of one score: SD of true responses over the score's error",
    )
    how_good = c.add_mutually_exclusive_group()
    how_good.add_argument(
        "--quality", type=finite, metavar="R", help="quality of the map: correlation of the response that it measures with the "
        "response to be maximised, 0 to 1 (default: 1, which no real map reaches)"
    )  # fmt: skip
    how_good.add_argument("--decoder", type=Path, metavar="DIR", help="take the quality from the held-out blocks of this decoder's folder")
    c.add_argument("--map", default="", metavar="TEXT", help="with --decoder: which map, or a sum as 'face - 0.5 * place'")
    c.add_argument("--size", type=int, default=100, metavar="D", help="latent dimensions (default 100)")
    c.add_argument("--cadence", type=finite, default=4.0, metavar="S", help="seconds from onset to onset (default 4)")
    c.add_argument("--lag", type=finite, default=12.0, metavar="S", help="seconds from an onset to its score (default 12)")
    c.add_argument("--strategies", nargs="+", default=["surrogate", "truncation"], choices=list(OF_SCORES))
    c.add_argument("--schedules", nargs="+", default=list(SCHEDULES), choices=SCHEDULES)
    c.add_argument(
        "--objectives", nargs="+", default=["cosine", "multimodal", "saturating"], choices=list(OBJECTIVES),
        help="preferences to simulate, with equal weights (default: cosine multimodal saturating)",
    )  # fmt: skip
    c.add_argument("--seeds", type=int, default=8, metavar="N", help="simulated participants for each objective (default 8)")
    add_options(c)


def _quality(options: argparse.Namespace) -> tuple[float, str]:
    """Return the quality of the map, and its description."""
    if options.decoder is None:
        if options.map:
            raise ConfigError("--map: expected --decoder, whose maps it names")
        if options.quality is None:
            return 1.0, "a perfect map (--quality, --decoder)"
        return options.quality, f"a map of r = {options.quality:g}"
    from rtevo.decode.promise import map_quality

    found = map_quality(options.decoder, options.map)
    if not found.r > 0:
        raise ConfigError(f"--decoder {options.decoder}: expected a map that separates held-out blocks, found {found}")
    return min(found.r, 1.0), f"a map of {found}"


def plan(options: argparse.Namespace) -> None:
    """Simulate, and print the best choices."""
    from rich.console import Console
    from rich.table import Table

    try:
        quality, said = _quality(options)
        scan = planning.Scan(options.minutes, options.cnr, options.size, options.cadence, options.lag, quality)
        found = planning.choices(scan, options.strategies, options.schedules)
    except ValueError as problem:
        raise ConfigError(f"--{problem}") from None
    parts = [planning.cases(scan, choice, options.objectives, options.seeds) for choice in found]
    with client(options) as where, shown() as progress:
        every = [case for part in parts for case in part]
        outcomes = iter(run_cases(every, where, options.keep, on_progress=partial(progress, "simulated sessions")))
    ranked = planning.rank(found, [[next(outcomes) for _ in part] for part in parts], len(options.objectives))
    title = f"{scan.minutes:g} min, an image every {scan.cadence_s:g} s, CNR {scan.cnr:g}, {scan.size} dimensions, {options.seeds} seeds"
    table = Table(title=f"{title}, {said}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("gain (SD)", "±", "strategy", "schedule", "population", "generations", "mutation_sd"):
        table.add_column(name, justify="left" if name in ("strategy", "schedule") else "right")
    for c in ranked:
        mutation = "" if math.isnan(c.mutation_sd) else f"{c.mutation_sd:g}"
        table.add_row(
            f"{c.gain:.2f}",
            "" if math.isnan(c.se) else f"{c.se:.2f}",
            c.strategy,
            c.schedule,
            str(c.population),
            str(c.generations),
            mutation,
        )
    console, best = Console(highlight=False, width=100), ranked[0]
    console.print(table)
    lines = [f'strategy = "{best.strategy}"', f'schedule = "{best.schedule}"', f"population = {best.population}"]
    lines += [f"generations = {best.generations}"] + ([] if math.isnan(best.mutation_sd) else [f"mutation_sd = {best.mutation_sd:g}"])
    print(
        "\nIn the session file (choices within about twice ± of the best are as good; ± needs --seeds 2 or more):\n\n[evolution]\n"
        + "\n".join(lines)
    )


def blind(options: argparse.Namespace) -> None:
    """Write a blinding key."""
    for name in ("participants", "sessions", "conditions"):
        given = getattr(options, name)
        twice = sorted({one for one in given if given.count(one) > 1})
        if twice:
            raise ConfigError(f"--{name}: expected each once, got {', '.join(twice)} more than once")
    for name in ("participants", "sessions"):
        for label in getattr(options, name):
            if not (label.isascii() and label.isalnum()):
                hint = f"; did you mean {near!r}?" if (near := suggested_label(label)) else ""
                raise ConfigError(f"--{name}: expected letters a to z and digits, got {label!r}{hint}")
    if options.out.exists():
        raise ConfigError(f"--out {options.out}: expected a new file in an existing folder, found one that exists")
    secret = make_secret(options.secret) if options.secret else b""
    rng = np.random.default_rng(options.seed)  # without a seed: from the system's entropy
    lines, block = ["participant\tsession\tcode"], list[str]()
    for participant in options.participants:
        for session in options.sessions:
            if not block:
                block = [options.conditions[k] for k in rng.permutation(len(options.conditions))]
            lines.append(f"{participant}\t{session}\t{scramble(block.pop(), participant, session, secret)}")
    try:
        with options.out.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as problem:
        raise ConfigError(f"--out {options.out}: expected a new file in an existing folder: {problem.strerror}") from None
    also = ", blinding_secret" if options.secret else ""
    print(f'{options.out}: {len(lines) - 1} sessions; set condition = "blinded" and [evolution] blinding_key{also} in their session files')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    options = parser().parse_args(arguments)
    return command(lambda: {"plan": plan, "blind": blind}[options.command](options))


if __name__ == "__main__":
    sys.exit(main())
