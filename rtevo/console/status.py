"""The terminal's display of a running session: a permanent line, and messages above it."""

from __future__ import annotations

import math
import select
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rtevo.console.view import View
from rtevo.console.waits import FOLLOWING, awaited, state_of
from rtevo.outside import shown_lines
from rtevo.record import LOG, LogFollower
from rtevo.records import FD_LIMIT_MM, VolumeFlag
from rtevo.session.course import course_settings
from rtevo.session.orders import CHOICES, choices_of
from rtevo.shm import Ring

if TYPE_CHECKING:
    from rtevo.session.clock import Clock
    from rtevo.session.plan import Plan

__all__ = ["Status", "closing_words"]

GAP = "  "
QUIET_S = 10.0  # without a terminal, a line this often
QUESTION = "Type y (accept a doubtful placement), n (try the next volumes), r (the scanner's run begins anew) or x (stop), and Enter."
ANSWERS = {"y": "accept", "n": "again", "r": "restart", "x": "stop"}
HELD = "Type g (go on showing images), r (the scanner's run begins anew) or x (stop), and Enter."
AT_HELD = {"g": "go_on", "r": "restart", "x": "stop"}
BROWSER = "b"  # shows the page's address again
AWAY = "t"  # takes the image on the screen away
TAKES_AWAY = "t and Enter takes the image on the participant's screen away."
SEEN = "Type k and Enter when you have seen it."
MORE = {  # shared word: action, key, question
    "presenter_waits": (
        "admit", "l", "Another presenter waits. Type l and Enter to let it in, in place of the session's own; it stays outside otherwise."
    ),
    "start_shift": (
        "correct", "c", "The trigger was not the first volume's. Type c and Enter before the first image to take the start of the volumes."
    ),
}  # fmt: skip


class Status:
    """The running status line; a context manager.

    It draws what the operator's page draws: a :class:`View` that follows the session's log, so that it has no part in any ring and counts
    on from where a session was interrupted. Without a terminal it prints a plain line every 10 s.

    Parameters
    ----------
    plan : Plan
    console : Console, optional
    """

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        self.plan = plan
        self.console = console or Console(stderr=True, highlight=False)
        self.view = View(plan.config, plan.tr_s)
        self._follower = LogFollower(plan.out / LOG)
        self._clock: Clock | None = None
        self._rings: dict[str, Ring] = {}
        self._images = course_settings(plan.config).images
        self._operate: Callable[[str, str], None] | None = None
        self._asked = 0  # the question about a placement that has been put
        self._offered = 0  # what was asked about what follows
        self._alarm = (0, 0)  # what was asked about alarms
        self._more = dict.fromkeys(MORE, 0)  # what has been asked
        self._printed = 0.0
        self._follow()
        self._log = (plan.out / "session.log").open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        self._live = Live(console=self.console, refresh_per_second=4, transient=True, auto_refresh=False)

    def __enter__(self) -> Status:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()
        with suppress(OSError):
            self._log.close()

    def log(self, level: str, text: str) -> None:
        """Show a message (but not a DEBUG one), and keep it in ``session.log``."""
        text = shown_lines(text)
        with suppress(OSError):  # the disk is full: the record process reports that
            self._log.write(f"{time.strftime('%H:%M:%S')} {level} {text}\n")
        if level == "DEBUG":
            return
        self.console.print(Text(text, style={"WARNING": "yellow", "ERROR": "bold red"}.get(level, "dim")))

    def invite(self) -> None:
        """Print the address of the operator's page; its token is shown here and nowhere else."""
        settings = self.plan.config.console
        if settings.port:
            host = f"[{settings.address}]" if ":" in settings.address else settings.address
            token = f"?token={self.plan.token}" if self.plan.token else ""
            again = f"  (again, for another browser: {BROWSER} and Enter)" if token and sys.stdin is not None and sys.stdin.isatty() else ""
            self.console.print(Text(f"console: http://{host}:{settings.port}/{token}{again}", style="bold"), soft_wrap=True)

    def progress(self, text: str) -> None:
        """Show what is being waited for before the session begins."""
        if self.console.is_terminal:
            self._live.update(Text(f"starting: {text}", style="cyan"), refresh=True)
        elif time.monotonic() > self._printed + QUIET_S:
            self._printed = time.monotonic()
            self.console.print(f"starting: {text}")

    def watch(self, rings: dict[str, Ring], clock: Clock, operate: Callable[[str, str], None] | None = None) -> None:
        """Begin to show the session's time and the depths of its rings; `operate` does what is answered at the terminal."""
        self._clock, self._rings, self._operate = clock, rings, operate
        if operate is not None and sys.stdin is not None and sys.stdin.isatty():
            self.console.print(Text(TAKES_AWAY, style="dim"))

    def _follow(self) -> None:
        for record in self._follower.new():
            self.view.take(record)

    def tick(self) -> None:
        """Refresh the line."""
        self._follow()
        self._ask()
        if self.console.is_terminal:
            self._live.update(self._render(), refresh=True)
        elif time.monotonic() > self._printed + QUIET_S:
            self._printed = time.monotonic()
            self.console.print(" | ".join(f"{label} {value}" for label, value, _ in self._cells()))

    def _ask(self) -> None:
        """Print the question that waits for the operator, and carry out the answer; only if somebody sits at the terminal."""
        if self._clock is None or self._operate is None or sys.stdin is None or not sys.stdin.isatty():
            return
        get = self._clock.get
        if offered := get("offered"):
            self._ask_what_follows(offered)
            return
        asked = get("placement_asked")
        more = {word: get(word) for word in MORE}
        for word, (_, _, question) in MORE.items():
            if more[word] and more[word] != self._more[word]:
                self.console.print(Text(question, style="bold yellow"))
        self._more = more
        if asked and asked != self._asked:
            from rtevo.report.overlay import draw_attempt

            picture = draw_attempt(self.plan.out, self.plan.decoder, self.plan.decoder_name, self.plan.part, asked - 1)
            if picture is None:
                return  # it is not in the record yet
            self._asked = asked
            self.console.print(Text(f"Look at {picture}. {QUESTION}", style="bold yellow"))
            return
        held, alarm = get("held"), get("alarm") if get("alarm") > get("seen") else 0
        if not asked and (alarm or held) and self._alarm != (alarm, held):
            self.console.print(Text(HELD if held else SEEN, style="bold yellow"))
        self._alarm = (alarm, held)
        if select.select([sys.stdin], [], [], 0)[0]:
            if alarm:  # any answer says that it has been seen
                self._operate("seen", "at the terminal")
            self._answer(sys.stdin.readline().strip().lower()[:1], asked, held)

    def _ask_what_follows(self, offered: int) -> None:
        """Ask what follows a run of a visit, and do what is answered."""
        assert self._operate is not None
        choices = choices_of(offered)
        if offered != self._offered:
            self._offered = offered
            self.console.print(Text(_follows(choices), style="bold yellow"))
        if select.select([sys.stdin], [], [], 0)[0]:
            word = sys.stdin.readline().strip().lower()[:1]
            if action := next((a for a, choice in CHOICES.items() if choice in choices and FOLLOWING[choice][0] == word), ""):
                self._offered = 0  # it is asked again where that cannot be done
                self._operate(action, "at the terminal")
            elif word:
                self.console.print(Text(_follows(choices), style="bold yellow"))

    def _answer(self, word: str, asked: int, held: int) -> None:
        """Do what was answered."""
        assert self._operate is not None
        waiting = [more for name, more in MORE.items() if self._more[name]]
        if word == BROWSER and self.plan.token:
            self.invite()
            return
        if word == AWAY:
            self._operate("away", "")
            return
        known = {**{key: action for action, key, _ in waiting}, **(AT_HELD if held else {}), **(ANSWERS if asked else {})}
        if word in known:
            self._operate(known[word], "at the terminal")
        elif questions := [*([QUESTION] if asked else []), *([HELD] if held else []), *(question for *_, question in waiting)]:
            self.console.print(Text(" ".join(questions), style="bold yellow"))

    def _render(self) -> Text:
        """Arrange the cells in as many lines as they need; none is cut."""
        found, width = Text(), 0
        for label, value, style in self._cells():
            cell = Text.assemble((f"{label} ", "dim"), (value, style))
            wraps = width and width + len(GAP) + cell.cell_len > self.console.width
            found.append("\n" if wraps else GAP if width else "").append_text(cell)
            width = cell.cell_len if wraps or not width else width + len(GAP) + cell.cell_len
        return found

    def _cells(self) -> list[tuple[str, str, str]]:
        """Label, value and style of each part of the line."""
        view, config = self.view, self.plan.config
        now_s = self._clock.now_s() if self._clock else math.nan
        state = state_of(self._clock.get, view) if self._clock else "starting"
        yours = state in ("ready", "asked", "paused", "held", "between")
        cells = [("session", awaited(state, view) or state, "bold yellow" if yours else "" if state == "running" else "cyan")]
        cells.append(("t", f"{now_s:.0f} s" if self._clock else "-", "bold"))
        if view.volumes:
            volume, took = view.volumes[-1], view.latencies["align"].values
            missing, displacement = volume.flags & VolumeFlag.MISSING, volume.displacement_mm
            moved = "yellow" if displacement > FD_LIMIT_MM else ""
            cells.append(("volume", f"{volume.index} (TR {self.plan.tr_s:g} s)", "bold red" if missing else ""))
            cells.append(("FD", "-" if math.isnan(displacement) else f"{displacement:.2f} mm", moved))
            cells.append(("aligned in", "missing" if missing else f"{took[-1]:.0f} ms" if took else "-", "red" if missing else ""))
        for name, rate in view.rates.items():
            cells.append((name, "lost" if math.isnan(rate) else f"{rate:.0f}/min", "yellow" if math.isnan(rate) else ""))
        generation = max((trial.generation for trial in view.trials.values() if trial.shown), default=0)
        if view.planned:
            cells.append(("block", f"{generation + 1}/{len({block for block, _ in view.planned})}", "bold"))
        else:
            cells.append(("generation", f"{generation + 1}/{config.evolution.generations}", "bold"))
        cells.append(("images", f"{view.shown}/{len(view.planned) or self._images}", ""))
        if view.planned and config.localizer.task != "none":
            cells.append(("task", view.task.words(), "yellow" if view.task.misses > view.task.hits else "green"))
        if view.blinded:
            cells.append(("score", "hidden", "green"))
        elif not math.isnan(view.score):
            cells.append(("score", f"{view.score:+.3f}" + (f" ({view.score_maps})" if view.score_maps else ""), "green"))
        if means := view.means():
            cells.append(("fitness", " ".join(f"{mean:+.2f}" for _, mean, _ in means[-6:]), "green"))
        if self._clock and not math.isnan(view.due_s):
            late = view.due_s <= now_s
            cells.append(("next image due in", "waiting" if late else f"{view.due_s - now_s:.1f} s", "yellow" if late else ""))
        if self._clock:
            depths = {name: max(ring.statistics().lag.values(), default=0) for name, ring in self._rings.items()}
            if view.blinded:
                depths.pop("fitness", None)  # the number of fitness values depends on the condition
            cells.append(("queues", " ".join(f"{name[:3]} {depth}" for name, depth in depths.items() if depth) or "empty", ""))
        return cells


def _follows(choices: Sequence[str]) -> str:
    """Ask what follows a run of a visit."""
    each = [f"{key} ({name}{f': {what}' if what else ''})" for key, name, what in (FOLLOWING[choice] for choice in choices)]
    return f"What follows? Type {', '.join(each[:-1])} or {each[-1]}, and Enter."


def closing_words(summary: dict[str, Any], out: Path, console: Console | None = None) -> None:
    """Print a finished session's figures and where they lie."""
    console = console or Console(highlight=False)
    volumes, images, latencies = summary["volumes"], summary["images"], summary["latencies_ms"]
    table = Table(title=f"Session {summary['status']}", title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("volumes", f"{volumes['received']} received, {volumes['aligned']} aligned, {volumes['lost']} lost")
    cadence = images["cadence_s"]
    pace = f", one every {cadence['p50']:.3f} s (at most {cadence['max']:.3f})" if cadence["n"] else ""
    table.add_row("images", f"{images['shown']} shown of {images['painted']} painted{pace}")
    for name, label in (
        ("file_closed_to_aligned", "file closed -> aligned"),
        ("last_needed_volume_to_score", "last volume -> score"),
        ("scores_to_first_image", "scores -> first image"),
    ):
        d = latencies[name]
        if d["n"]:
            table.add_row(label, f"p50 {d['p50']:.0f} ms, p99 {d['p99']:.0f} ms, max {d['max']:.0f} ms (n = {d['n']})")
    task = summary.get("localizer")
    if task is not None:
        table.add_row("categories", ", ".join(f"{name} {shown}" for name, shown in task["categories"].items()))
        time_s = task["response_time_s"]
        answered = f"{task['hits']} of {task['targets']} targets answered" + ("" if time_s is None else f", {time_s:.2f} s")
        table.add_row("task", f"{answered}; {task['false_alarms']} false alarms" if task["targets"] else "none")
    for entry in summary["generations"] if task is None else ():
        parts = [
            f"{label} {entry[key]:+.3f}"
            for key, label in (("mean_fitness", "fitness"), ("mean_true_response", "true response"))
            if entry.get(key) is not None
        ]
        table.add_row(f"generation {entry['generation']}", ", ".join(parts) or "not scored")
    console.print(table)
    console.print(
        f"results: {out}\nreport:  python -m rtevo.report {out}" + (f"\ndecoder: python -m rtevo.decode fit {out}" if task else "")
    )
