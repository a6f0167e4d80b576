"""A session from its first process to its last table; and a visit: several sessions while the participant stays in the scanner.

:func:`run` is one session. :func:`sit` is a visit: after each run it asks :data:`Following` for the next one, and begins it. Between runs,
processes with a loaded model stay, the stimulus PC stays connected and shows the text between runs, and the operator's page keeps its
address.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtevo.config import Config, presentation_settings, presenter_is_outside
from rtevo.errors import DataError, LinkError, RtevoError, StageError, full_disk
from rtevo.outside import shown_lines
from rtevo.session.counting import counted
from rtevo.session.orders import SAID, bit_of
from rtevo.session.plan import Plan, Visit
from rtevo.session.prepare import prepare
from rtevo.session.provenance import open_record
from rtevo.session.takeover import STATE
from rtevo.stops import Stops
from rtevo.wire import RESTART

if TYPE_CHECKING:
    from rtevo.bridge import Lobby
    from rtevo.children import Standing
    from rtevo.console import Status
    from rtevo.supervisor import Supervisor

__all__ = ["Following", "Succession", "run", "sit"]

Following = Callable[[Path, dict[str, Any], str], Config | None]
"""Chooses the run that follows a run of a visit.

The callback is called when a run is over and its tables are written. Arguments: the run's folder, its summary (``summary.json``), and the
operator's choice: ``next``, ``again`` (the run is repeated, and does not count) or ``end``; if nobody attends, ``next`` after a completed
run and ``end`` after any other. It returns the settings of the next run, or None if the visit is over; after ``end`` the return value is
ignored. A resumed run continues in its own folder; the callback is called when that run is over. If the callback raises an
:class:`rtevo.errors.RtevoError`, or the next run cannot be prepared, the operator sees the error and chooses again; after ``end`` the error
ends the visit.

The next run's settings name the runs that it continues: ``[evolution] continue_from`` and ``[decoder] continue_from``, both the folder of a
run (see :class:`Succession`). Its record names the run that it follows, and the run that it repeats (``follows``, ``repeats`` in
``summary.json``).
"""

TICK_S = 0.25  # between looks at the terminal
OVER = ("completed", "unscored")  # status of a run that counts
AFTER = {True: ("next", "again", "end"), False: ("again", "resume", "end")}  # after a run that counts; after an interrupted run


def run(plan: Plan, stops: Stops) -> dict[str, Any]:
    """Run a prepared session to its end, and return its summary.

    If the operator wants another run of the scanner, because the decoder could not be placed, it becomes the session's next part.

    Parameters
    ----------
    plan : Plan
    stops : Stops
        The signals that end it; already entered.

    Raises
    ------
    StageError
        A process died; the recorded data have been saved, and the summary written.
    KeyboardInterrupt
        The session was stopped before its record began.
    """
    while True:
        ended = _run(plan, stops)
        if ended.summary["status"] != "restarted":
            return ended.summary
        if plan.localizer:
            print("rtevo: this run of the localizer has ended: start the next with the same command", file=sys.stderr)
            return ended.summary
        if (following := _restarted(plan, stops)) is None:
            return ended.summary
        plan = following


def sit(plan: Plan, stops: Stops, following: Following) -> dict[str, Any]:
    """Run a visit; print how each run ended, and return the summary of the last one.

    Parameters
    ----------
    plan : Plan
        Plan of the first run.
    stops : Stops
        The signals that end a run, or, between two runs, the visit; already entered.
    following : callable
        See :data:`Following`.

    Raises
    ------
    StageError
        The visit ended with a run in which a process died.
    RtevoError
        Nobody attends, and the next run cannot be prepared.
    KeyboardInterrupt
        The first run was stopped before its record began.
    """
    from rtevo.children import Standing

    plan = replace(plan, visit=plan.visit or Visit())
    with Standing() as standing:
        while True:
            ended = _run(plan, stops, _Between(plan, stops, following), standing)
            if ended.summary["status"] == "restarted":
                again = _restarted(plan, stops)
                ended = replace(ended, following=again and replace(again, visit=plan.visit, token=plan.token))
            if ended.following is None and ended.failure is not None:
                raise ended.failure
            if ended.following is None:
                return ended.summary
            plan = ended.following


def _restarted(plan: Plan, stops: Stops) -> Plan | None:
    """Return the plan of a session's next part, with another run of the scanner; None if the session was stopped meanwhile."""
    from rtevo.past.resume import resume

    print("rtevo: the session begins again: restart the scanner's run when everything is ready", file=sys.stderr)
    try:
        stops.listener = None
        return resume(plan.out, rebaseline=True, token=None if plan.visit is None else plan.token)[0]
    except KeyboardInterrupt:
        stops.listener = _only_count
        return None


def _only_count() -> None:
    """Ignore a signal that can no longer change anything."""


@dataclass(frozen=True)
class _Ended:
    """How a run, or a part of it, has ended."""

    summary: dict[str, Any]
    failure: StageError | None = None
    following: Plan | None = None


def _run(plan: Plan, stops: Stops, between: _Between | None = None, standing: Standing | None = None) -> _Ended:
    """Run one part of a session, and choose what follows it in a visit."""
    from rtevo.console import Status
    from rtevo.record import hold
    from rtevo.supervisor import Supervisor

    asked = stops.count
    with ExitStack() as held, ExitStack() as stack:
        held.enter_context(hold(plan.out))
        open_record(plan)
        stops.listener = _only_count  # from here on there is a record, and a signal cannot stop its completion
        display = stack.enter_context(Status(plan))
        supervisor = stack.enter_context(Supervisor(plan, display.log, display.progress, standing))
        with stops.heard_by(supervisor.stop):
            status, failure = _to_its_end(display, supervisor, lambda: stops.count > asked)
            supervisor.dismiss(observers=between is None)
            summary = _complete(plan, supervisor, status, str(failure or ""))  # before the rings are removed, which may take long
        held.close()
        if failure is not None and between is None:
            raise failure
        if between is not None and status == "restarted":
            between.go_on(supervisor)
        if between is None or status == "restarted":
            return _Ended(summary)
        return _Ended(summary, failure, between.find(display, supervisor, summary, failure))


def _to_its_end(display: Status, supervisor: Supervisor, stopped: Callable[[], bool]) -> tuple[str, StageError | None]:
    """Start the processes, and wait for the end; return the status and the failure."""
    try:
        display.invite()
        if stopped():  # while the rings were made
            raise KeyboardInterrupt
        supervisor.start()
        display.watch(supervisor.rings, supervisor.clock, supervisor.operate)
        return supervisor.run(display.tick), None
    except KeyboardInterrupt:
        supervisor.abandon()
        return "stopped", None
    except StageError as error:
        supervisor.abandon(str(error))
        return "failed", error


def _complete(plan: Plan, supervisor: Supervisor, status: str, reason: str) -> dict[str, Any]:
    """Write the log's last records, and make the tables; on a full disk, in the space that was reserved for them.

    Raises
    ------
    DataError
        The tables cannot be written.
    """
    from rtevo.record import LOG, LogWriter, finalise, hidden_truth, release

    release(plan.out)
    clock_ns, painter = supervisor.clock.now_ns(), supervisor.told.get("generator", "")
    try:
        with LogWriter(plan.out / LOG) as log:
            if truth := hidden_truth(plan.out):
                log.append("truth", {"preferences": truth}, clock_ns)
            drove = plan.config.session.condition if plan.config.evolution.sealed else plan.condition
            end = {"ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "status": status, "reason": reason, "condition": drove}
            statistics, warnings = supervisor.ring_statistics(), supervisor.warnings
            if plan.config.evolution.sealed:  # the number of its messages would reveal the condition
                statistics.pop("fitness", None)
            log.append("end", {**end, "generator": painter, "rings": statistics, "warnings": warnings}, clock_ns)
        return finalise(plan.out)
    except OSError as error:
        what = full_disk(error, plan.out) or f"{error.strerror or error}"
        raise DataError(f"{plan.out}: the tables could not be written: {what}, then `python -m rtevo.record {plan.out}`") from None


# --- between two runs --------------------------------------------------------------------------------------------------------------------


class _Between:
    """Chooses and prepares the next run, while the page and the stimulus PC wait."""

    def __init__(self, plan: Plan, stops: Stops, following: Following) -> None:
        self._plan, self._stops, self._following = plan, stops, following
        self._outside = presenter_is_outside(plan.config)
        self._series: tuple[str, ...] = ()
        self._heard, self._stopped = stops.count, False
        self._said: list[str] = []

    def find(self, display: Status, supervisor: Supervisor, summary: dict[str, Any], failure: StageError | None) -> Plan | None:
        """Return the plan of the next run; None if the visit is over."""
        from rtevo.console import closing_words

        self._series = supervisor.series
        if failure is not None:
            display.log("ERROR", str(failure))
        display.tick()
        closing_words(summary, self._plan.out, display.console if display.console.is_terminal else None)
        with self._stops.heard_by(lambda: self._stop(supervisor)):
            found = self._prepared(display, supervisor, summary)
            if found is None:
                supervisor.clock.set("chosen", bit_of("end"))
            supervisor.part()
            if found is not None and self._stopped:
                _discard(found)
                self._farewell()
                found = None
        return found

    def go_on(self, supervisor: Supervisor) -> None:
        """End the observers if another part of the run follows at once; the page returns at the same address."""
        supervisor.clock.set("chosen", bit_of("resume"))
        supervisor.part()

    def _stop(self, supervisor: Supervisor) -> None:
        """Whether a signal came between two runs; it ends the visit, whatever was chosen."""
        self._stopped = True
        supervisor.clock.set("chosen", bit_of("end"))

    def _prepared(self, display: Status, supervisor: Supervisor, summary: dict[str, Any]) -> Plan | None:
        """Ask for a choice, and prepare that run; ask again if it cannot be prepared."""
        done = summary["status"] in OVER
        while True:
            stopped = self._stops.count > self._heard  # while the last volumes arrived, or the tables were written
            alone = "next" if summary["status"] == OVER[0] and not stopped else "end"
            choice = self._choice(display, supervisor, done) if self._plan.attended else alone
            try:
                found = self._plan_of(choice, summary)
            except (RtevoError, OSError) as error:
                if not self._plan.attended:
                    self._farewell()
                if choice == "end" or not self._plan.attended:
                    raise
                self._say(display, full_disk(error, self._plan.out) or str(error))
                continue
            if found is None and (choice != "end" or not self._plan.attended):
                self._farewell()
            return found

    def _choice(self, display: Status, supervisor: Supervisor, done: bool) -> str:
        """Wait for the operator's choice; the presenter stays connected."""
        with ExitStack() as stack:
            lobby, shown_s = self._lobby(display, stack), -math.inf

            def tick() -> None:
                nonlocal shown_s
                if self._stopped:
                    supervisor.clock.set("chosen", bit_of("end"))
                if lobby is not None:
                    if lobby.serve():
                        self._say(display, "The participant asks to stop")
                    supervisor.clock.set("between", int(lobby.there))
                if time.monotonic() > shown_s + TICK_S:
                    shown_s = time.monotonic()
                    display.tick()

            choice = supervisor.offer(AFTER[done], tick)
            supervisor.clock.set("between", 0)
            if lobby is not None:
                lobby.leave("finished" if choice == "end" else RESTART, wait=choice == "end")
            return choice

    def _say(self, display: Status, text: str) -> None:
        """Show the operator a message, at the terminal and on the page."""
        display.log("ERROR", text)
        self._said += shown_lines(text).splitlines()
        partial = self._plan.runtime / f"{SAID}.part"
        with suppress(OSError):  # a full disk, which may be the message itself
            partial.write_text("\n".join(self._said), encoding="utf-8")
            os.replace(partial, self._plan.runtime / SAID)

    def _lobby(self, display: Status | None, stack: ExitStack) -> Lobby | None:
        """Return the lobby in which a presenter on another computer waits; None if there is no such presenter."""
        if not self._outside:
            return None
        from rtevo.bridge import Lobby

        config = self._plan.config
        keys = Path(config.bridge.keys) if config.bridge.keys else None
        try:
            opened = Lobby(config.bridge.bind, presentation_settings(config), config.presentation.between_text, keys)
        except LinkError as error:
            if display is not None:
                display.log("WARNING", str(error))
            return None
        return stack.enter_context(opened)

    def _farewell(self) -> None:
        """Inform the presenter that no run follows."""
        with ExitStack() as stack:
            if (lobby := self._lobby(None, stack)) is not None:
                lobby.leave("finished", wait=True)

    def _plan_of(self, choice: str, summary: dict[str, Any]) -> Plan | None:
        """Prepare the chosen run."""
        from rtevo.past.resume import resume

        plan = self._plan
        assert plan.visit is not None
        passed = (*plan.visit.passed, *self._series)
        if choice == "resume":
            again, words = resume(plan.out, token=plan.token)
            print(f"rtevo: resuming {plan.out}, part {again.part + 1}, from {words}", file=sys.stderr)
            return replace(again, visit=replace(plan.visit, passed=passed))
        config = self._following(plan.out, summary, choice)
        if config is None or choice == "end":
            return None
        out = str(plan.out)
        return prepare(config, plan.session_file, Visit(out, out if choice == "again" else "", passed), plan)


def _discard(plan: Plan) -> None:
    """Remove the files of a run that does not begin."""
    shutil.rmtree(plan.runtime, ignore_errors=True)
    if not plan.part:
        shutil.rmtree(plan.out, ignore_errors=True)


class Succession:
    """A visit without a study: runs with the same settings, each of which continues the one before. See :data:`Following`.

    Parameters
    ----------
    plan : Plan
        Plan of the first run.
    runs : int
        Number of runs, if nobody attends.
    """

    def __init__(self, plan: Plan, runs: int) -> None:
        self._config, self._runs, self._attended = plan.config, runs, plan.attended
        self._first, self._number, self._counted = plan.out, 1, 0

    def __call__(self, out: Path, summary: dict[str, Any], choice: str) -> Config | None:
        """Return the settings of the next run."""
        from rtevo.past.resume import of_next_run

        if choice == "end":
            return None
        if choice == "next":
            self._counted += 1
            if not self._attended and self._counted >= self._runs:
                return None
            self._config = _continued(self._config, out)
        self._config = of_next_run(self._config)[0]  # a series number or UID selected the first run's series
        session = replace(self._config.session, run=self._config.session.run + 1)
        self._config = counted(replace(self._config, session=session, record=replace(self._config.record, out=self._beside())))
        return self._config

    def _beside(self) -> str:
        """Return the folder of the next run: beside the first, if that was named."""
        if not self._config.record.out:
            return ""
        while True:
            self._number += 1
            if not (place := self._first.with_name(f"{self._first.name}-{self._number}")).exists():
                return str(place)


def _continued(config: Config, out: Path) -> Config:
    """Return the settings of a run that continues another."""
    evolution = replace(config.evolution, continue_from=str(out))
    state = str(out) if (out / STATE).is_dir() else config.decoder.continue_from
    return replace(config, evolution=evolution, decoder=replace(config.decoder, continue_from=state))
