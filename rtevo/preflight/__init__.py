"""Everything that can be checked before the participant lies down: ``python -m rtevo.run --check SESSION.toml``.

Each check is one line of :data:`CHECKS`. It calls the functions that the start of a session calls (:mod:`rtevo.session.checks`), and then
does what a session will do: paints, realigns, writes, makes the rings, listens, and waits for the presenter. A check that cannot be made
is reported as well. Each finding says what to do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from rtevo.config import Config, is_localizer, load
from rtevo.errors import ConfigError, RtevoError
from rtevo.preflight import machine, painting, pictures, sensors, stimulus, volumes
from rtevo.preflight.findings import Check, Finding, Known, Verdict
from rtevo.session.counting import counted
from rtevo.session.localizer import as_localizer

__all__ = ["CHECKS", "Finding", "main", "preflight", "row"]

EVOLUTION = "evolution"
CHECKS = (
    Check("leftovers", machine.leftovers, to_do="see python -m rtevo.shm"),
    Check("volumes", volumes.source),
    Check("delivery", volumes.delivery, to_do="end what listens there (ss -ltnp), choose another [acquisition] port, or correct the file"),
    Check("decoder", volumes.decoder, ("tr_s",), "correct [decoder] folder, or make one: python -m rtevo.decode fit, or import", EVOLUTION),
    Check("sample volume", volumes.sample, ("tr_s",), "name a volume of the run's protocol: --sample FILE or DIR", EVOLUTION),
    Check("placement", volumes.placement, ("decoder",), "see docs/placement.md", EVOLUTION),
    Check("realignment", volumes.realignment, ("decoder", "tr_s"), "see docs/realign.md", EVOLUTION),
    Check("model", painting.model, (), "see docs/generator.md: how to get a model, and what its folder holds", EVOLUTION),
    Check("evolution", painting.course, ("embedding_size",), of=EVOLUTION),
    Check("gate", painting.gate, ("image_size",), "see docs/safety.md", EVOLUTION),
    Check("pictures", pictures.pictures, ("tr_s",), "see docs/localizer.md", "localizer"),
    Check("console", machine.console, to_do="end what listens there, choose another [console] port, or install what is missing"),
    Check("disk", machine.disk, ("grid", "image_size", "tr_s"), "choose another [record] out"),
    Check("shared memory", machine.shared_memory, ("grid", "tr_s", "embedding_size", "image_size")),
    Check("painting", painting.painting, ("image_size",), "see docs/generator.md; python -m rtevo.generate check says more", EVOLUTION),
    Check("pulse and respiration", sensors.sensors, (), "see docs/physio.md"),
    Check("skin conductance", stimulus.conductance, (), "mend [bridge] osc", EVOLUTION),
    Check("presenter", stimulus.presenter, to_do="end what listens there, or mend [bridge]; keys: python -m rtevo.bridge keys"),
)
_OTHERS = ("session file", "presenter's clock")  # findings with longer names than their checks
STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}


def preflight(known: Known) -> Iterator[Finding]:
    """Make all checks, one after the other; an error in one does not prevent the others.

    Parameters
    ----------
    known : Known
        The session, and the operator's options.

    Yields
    ------
    Finding
    """
    for check in CHECKS:
        if check.of not in ("", known.config.session.task):
            continue
        known.tell(check.name)
        if missing := check.missing(known):
            words = {"tr_s": "repetition time", "embedding_size": "model", "image_size": "model", "grid": "decoder"}
            names = ", ".join(dict.fromkeys(words.get(name, name) for name in missing))
            yield Finding(check.name, "warn", f"not checked: this needs the {names}", "correct that first, then check again")
            continue
        try:
            yield from check.run(known)
        except ConfigError as error:
            yield from (Finding(check.name, "fail", mistake, check.to_do) for mistake in error.mistakes)
        except (RtevoError, OSError) as error:
            yield Finding(check.name, "fail", str(error), check.to_do)


def _session(session: Path | None, make: Callable[[], Config]) -> tuple[Config | None, list[Finding]]:
    """Read the session file; all of its mistakes are found together."""
    try:
        config = make()
    except ConfigError as error:
        return None, [
            Finding(
                "session file",
                "fail",
                mistake,
                "correct it, or create the file that it names; python -m rtevo.run --example shows all keys",
            )
            for mistake in error.mistakes
        ]
    return config, [Finding("session file", "pass", str(session) if session else "none: every key has its default")]


def row(each: Finding, names: int) -> object:
    """Return a finding as a row for a terminal; `names` is the width of the names, in characters."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for width in (len("pass"), names, None):
        shown.add_column(width=width, no_wrap=width is not None)
    text = Text(each.found)
    if each.to_do:
        text.append(f"\n-> {each.to_do}", style=STYLES[each.verdict])
    shown.add_row(Text(each.verdict, style=STYLES[each.verdict]), each.check, text)
    return shown


def main(
    session: Path | None, overrides: dict[tuple[str, str], object], sample: Path | None = None, wait_s: float = 30.0, as_json: bool = False
) -> int:
    """Check a session, and print each finding when its check ends; return the exit status: 0 if no check fails, else 1."""
    from rich.console import Console

    output = Console(highlight=False)
    if not output.is_terminal:
        output.width = 140
    shown = output if output.is_terminal and not as_json else Console(stderr=True, highlight=False)  # only a terminal shows the moving line
    names = max(len(each) for each in (*(check.name for check in CHECKS), *_OTHERS))
    findings: list[Finding] = []

    def take(found: Iterable[Finding]) -> None:
        for each in found:
            findings.append(each)
            if not as_json:
                output.print(row(each, names))

    with shown.status("now: session file") as status:
        config, first = _session(session, lambda: counted(load(session, overrides), fixed=("session", "run") in overrides))
        take(first)
        if config is not None:
            take(
                preflight(
                    Known(
                        as_localizer(config) if is_localizer(config) else config, sample, wait_s, lambda text: status.update(f"now: {text}")
                    )
                )
            )
    counts = Counter(each.verdict for each in findings)
    if as_json:
        print(json.dumps({"verdict": _worst(counts), "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        output.print(f"\n{counts['pass']} pass, {counts['warn']} warn, {counts['fail']} fail")
    return 1 if counts["fail"] else 0


def _worst(counts: Counter[Verdict]) -> Verdict:
    return "fail" if counts["fail"] else "warn" if counts["warn"] else "pass"
