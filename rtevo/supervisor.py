"""Owns the processes and the rings of a session.

The supervisor creates every ring and alone unlinks them, starts every stage, and lets the scanner begin only when all are ready. It then
waits on pipes and process sentinels. The first failure ends the session: all processes are asked to save and exit, the others are killed,
the rings are removed, and the failure is raised with the stage's name and traceback.

At speed 0 a conductor runs the lock-step (:mod:`rtevo.session.conductor`).
"""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from multiprocessing.connection import wait
from typing import Any

from rtevo.children import Child, Standing, exit_reason, let_go
from rtevo.errors import StageError
from rtevo.outside import shown_lines
from rtevo.record import Notice, earlier, of_kind
from rtevo.records import MessageKind
from rtevo.session.clock import NEVER, Clock
from rtevo.session.conductor import Conductor
from rtevo.session.orders import ANSWERS, ASKED, CHOICES, OPERATOR, ORDERS, bit_of, bits_of, choices_of
from rtevo.session.plan import MEASURED, Plan
from rtevo.session.rings import create_rings
from rtevo.session.silence import ALONE_S, Silence
from rtevo.shm import Ring, clean
from rtevo.stages.table import Stage, child_main, stages_of
from rtevo.stops import start

__all__ = ["Supervisor"]

CAUSE_S = 1.5  # for finding the process that died first
GRACE_S = 2.0  # for saving and exiting, after a failure
START_S = 900.0  # for all to become ready: the first start compiles kernels, and loads and compiles models
PART_S = 5.0  # for an observer to exit
AGAIN_S = 30.0  # for an observer that is being restarted to be ready: somebody waits for its page
ENDS = ("", "completed", "stopped", "unscored")  # by the shared word "over"
PRELOADED = [f"rtevo.{name}" for name in ("bridge", "decode", "ingest", "kernels", "realign", "record", "simulate", "stages.evolve")]
"""Imported once, by the process from which all others are forked; none of these starts a thread, opens a socket or touches a GPU."""


class Supervisor:
    """Run a session's processes; a context manager that leaves nothing behind.

    Parameters
    ----------
    plan : Plan
    on_log : callable, optional
        Called with (level, text) for every message of a stage.
    on_progress : callable, optional
        Called with the name of what the session waits for while stages become ready.
    standing : Standing, optional
        Holds the processes that stay between the runs of a visit.

    Attributes
    ----------
    series : tuple of str
        UIDs of the series that arrived.
    """

    def __init__(
        self,
        plan: Plan,
        on_log: Callable[[str, str], None] | None = None,
        on_progress: Callable[[str], None] | None = None,
        standing: Standing | None = None,
    ) -> None:
        self.plan, self._standing = plan, standing
        self.series: tuple[str, ...] = ()
        self.on_log = on_log or (lambda level, text: None)
        self.on_progress = on_progress or (lambda text: None)
        self.children: dict[str, Child] = {}
        self.warnings: list[str] = []
        self._stack = ExitStack()
        self._interrupts = self._interrupts_told = 0
        self._told: dict[str, Any] | None = None  # the start message that every stage received
        self._restarts: dict[str, int] = {}
        self._orders = _ordered(plan)

    def __enter__(self) -> Supervisor:
        clean()  # rings that a killed session left in shared memory
        self.clock = self._stack.enter_context(Clock.create(self.plan.runtime / "clock", self.plan.config.session.speed))
        self._stack.callback(shutil.rmtree, self.plan.runtime, ignore_errors=True)
        self.silence = Silence(self.plan, self.clock)
        self.rings: dict[str, Ring] = create_rings(self.plan, self._stack)
        devices, localizer = self.plan.devices, self.plan.localizer
        self._conductor = Conductor(self.clock, self.rings, devices, lambda: self.children["bridge"].done, self._hear, localizer)
        self.on_log("DEBUG", f"session {self.plan.name}")
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()
        self._stack.close()

    def stop(self) -> None:
        """End the session in good order; on the second call, at once."""
        self._interrupts += 1
        if self._interrupts == 1:
            self.on_log("WARNING", "stopping: the image is removed and all data are saved (press again to stop at once)")
        self.clock.set("end", 1)

    # --- starting ---------------------------------------------------------------------------------------------------------------

    def _spawn(self, stage: Stage) -> None:
        if self._standing is not None and (child := self._standing.take(stage, self.plan)) is not None:
            self.on_log("DEBUG", f"stage {stage.name} is still process {child.process.pid}")
            self.children[stage.name] = child
            return
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        mine, its = context.Pipe()
        process = context.Process(target=child_main, args=(stage.name, self.plan, its), name=f"rtevo-{stage.name}", daemon=True)
        start(process)
        its.close()
        self.on_log("DEBUG", f"stage {stage.name} is process {process.pid}")
        self.children[stage.name] = Child(stage, process, mine)

    def start(self) -> None:
        """Start every stage, wait until all are ready, and begin the session.

        Raises
        ------
        StageError
            A stage failed, or was not ready in time.
        """
        before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        os.environ.update(dict.fromkeys(before, "1"))  # on few cores, the BLAS pools of several processes slow each other down
        try:
            for stage in stages_of(self.plan):
                self._spawn(stage)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        doing, deadline = "", 0.0
        while waiting := [c for c in self.children.values() if c.ready is None and not c.done]:
            now = ", ".join(c.stage.name + f" ({c.doing})" * bool(c.doing) for c in waiting)
            if now != doing:
                doing, deadline = now, time.monotonic() + START_S
            self.on_progress(f"waiting for {doing}")
            self.pump(0.2)
            if self.clock.get("end"):
                raise KeyboardInterrupt
            if time.monotonic() > deadline:
                raise StageError(waiting[0].stage.name, f"was not ready within {START_S:g} s")
        self._wait_for_operator()
        self.clock.start()
        self._told = {key: value for child in self.children.values() for key, value in (child.ready or {}).items()}
        for child in self.children.values():
            with suppress(OSError):  # the process has just died: its sentinel reports that
                self._tell(child)

    def _wait_for_operator(self) -> None:
        """Begin the session; with a console, when the operator presses Start."""
        self.clock.set("waiting", int("console" in self.children))
        while self.clock.get("waiting") and not self.children["console"].done:
            self.on_progress("ready; waiting for Start at the console")
            self.pump(0.2)
            if self.clock.get("end"):
                raise KeyboardInterrupt
        self.clock.set("waiting", 0)

    # --- running ----------------------------------------------------------------------------------------------------------------

    def run(self, on_tick: Callable[[], None] | None = None) -> str:
        """Wait for the session's end.

        Parameters
        ----------
        on_tick : callable, optional
            Called a few times a second, for a status line.

        Returns
        -------
        str
            "completed", "stopped", "unscored" (all images were shown, but could not be scored), or "restarted": the operator wants another
            run of the scanner.

        Raises
        ------
        StageError
            The first failure.
        """
        next_tick = 0.0
        while any(not c.done for c in self.children.values() if not c.stage.observer):
            self.pump(0.0005 if self.clock.lock_step else 0.05)
            self._wind_down()
            if self.clock.lock_step:
                self._conductor.conduct()
            if time.monotonic() > next_tick:
                next_tick = time.monotonic() + 0.25
                self._watch()
                if not self.clock.lock_step:
                    self._hear()
                if on_tick:
                    on_tick()
        status = "stopped" if self.clock.get("end") else "unscored" if self._unscored() else "completed"
        self.clock.set("over", ENDS.index(status))
        latest, deadline = time.monotonic() + AGAIN_S, time.monotonic() + PART_S
        while (left := [c for c in self.children.values() if not (c.done or self._waits(c))]) and time.monotonic() < deadline:
            self.pump(0.05)
            if any(c.ready is None for c in left):
                deadline = min(time.monotonic(), latest) + PART_S
        return "restarted" if self.clock.get("restart") else status

    def _waits(self, child: Child) -> bool:
        """Whether an observer stays until the operator has chosen the next run of the visit."""
        return child.stage.observer and self.plan.visit is not None

    def pump(self, timeout_s: float) -> None:
        """Handle the stages' messages, and detect stages that died.

        Raises
        ------
        StageError
            A stage failed or vanished.
        KeyboardInterrupt
            The user has asked a second time to end the session.
        """
        failures = self._failures(timeout_s)
        if self._interrupts > self._interrupts_told:
            self._interrupts_told = self._interrupts
            self._say(MessageKind.OPERATOR, "at the terminal", action="stop")
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if not failures:
            return
        deadline = time.monotonic() + CAUSE_S
        while all(follows for _, follows in failures) and time.monotonic() < deadline:
            failures += self._failures(0.05)  # these failures only follow from another stage's death: find the first
        raise min(failures, key=lambda failure: failure[1])[0]

    def _failures(self, timeout_s: float) -> list[tuple[StageError, bool]]:
        """Handle the stages' messages; return the failures, each with whether it may follow from another stage's."""
        alive = [c for c in self.children.values() if not c.done]
        signals = wait([c.pipe for c in alive] + [c.process.sentinel for c in alive], timeout_s)
        found = []
        for child in alive:
            if child.pipe in signals or child.process.sentinel in signals:
                left = child.process.exitcode is not None
                found += self._listen(child)
                if left and not child.done and not self._start_again(child):
                    child.done = True
                    reason = exit_reason(child.process.exitcode or 0)
                    if child.stage.observer:
                        self._warn(f"{child.stage.name} {reason}: the session continues without it")
                    else:
                        found.append((StageError(child.stage.name, reason), False))
        return found

    def _start_again(self, child: Child) -> bool:
        """Restart a killed stage if that loses no data; return whether it was restarted."""
        name, so_far = child.stage.name, self._restarts.get(child.stage.name, 0)
        early = (self._told is None or self.clock.lock_step) and not child.stage.observer
        if early or self.clock.get("abort") or so_far >= child.stage.restarts:
            return False
        self._restarts[name] = so_far + 1
        self._warn(f"{name} {exit_reason(child.process.exitcode or 0)} and was restarted")
        child.pipe.close()
        self._spawn(child.stage)
        return True

    def _listen(self, child: Child) -> list[tuple[StageError, bool]]:
        found = []
        try:
            while child.pipe.poll():
                message = json.loads(child.pipe.recv_bytes())
                if message["kind"] == "ready":
                    child.ready = message["payload"]
                    if self._told is not None:  # restarted
                        self._tell(child)
                elif message["kind"] == "progress":
                    child.doing = message["text"]
                elif message["kind"] == "log":
                    if message["level"] in ("WARNING", "ERROR"):
                        self._warn(message["text"], child.stage.name, alarm=message["level"] == "ERROR")
                    else:
                        self.on_log(message["level"], message["text"])
                elif message["kind"] == "elsewhere":
                    self.silence.elsewhere(message["text"])
                elif message["kind"] == "series":
                    self.series = tuple(message["uids"])
                elif message["kind"] == "operator":
                    self.operate(message["action"], message["text"], message["t_ns"])
                elif message["kind"] == "error" and child.stage.observer:
                    self._warn(f"{child.stage.name}: {message['text']}", child.stage.name)
                elif message["kind"] == "error":
                    child.done = True
                    found.append((StageError(child.stage.name, message["text"]), bool(message["follows"])))
                elif message["kind"] == "done":
                    child.done = True
                    child.stays = child.stage.stays and self._standing is not None
        except (EOFError, OSError):
            pass  # the sentinel reports the death
        return found

    def _tell(self, child: Child) -> None:
        """Send a stage the start message, and the bridge also the operator's orders for images, since the session's first part."""
        orders = self._orders if child.stage.name == "bridge" else []
        for said in (self._told, *({"order": action, "text": text} for action, text in orders)):
            child.pipe.send_bytes(json.dumps(said).encode())

    def _warn(self, text: str, stage: str = "", alarm: bool = False) -> None:
        """Show and record a warning; an alarm means that somebody must act, and is shown until it is marked as seen."""
        text = shown_lines(text)
        self.warnings.append(text)
        if alarm:
            self.clock.set("alarm", self.clock.get("alarm") + 1)
        self.on_log("ERROR" if alarm else "WARNING", text)
        self._say(MessageKind.ALARM if alarm else MessageKind.WARNING, text, stage)

    def operate(self, action: str, text: str, t_ns: int | None = None) -> None:
        """Carry out and record an action of the operator, at the console or the terminal; an action without effect is ignored."""
        word = OPERATOR.get(action)
        if action in ANSWERS:
            if not (asked := self.clock.get("placement_asked")):
                return
            self.clock.set("placement_answer", 4 * asked + ANSWERS[action])
        elif action == "seen":
            if self.clock.get("seen") == self.clock.get("alarm"):
                return
            self.clock.set("seen", self.clock.get("alarm"))
        elif action in ASKED:
            asking, answering = ASKED[action]
            if not (number := self.clock.get(asking)):
                return
            self.clock.set(answering, number)
        elif action in CHOICES:
            if self.clock.get("chosen") or not self.clock.get("offered") & bit_of(CHOICES[action]):
                return
            self.clock.set("chosen", bit_of(CHOICES[action]))
        elif word is not None:
            held = action == "go_on" and self.clock.get("held")
            if self.clock.get(word[0]) == word[1] and not held:
                return
            self.clock.set(*word)
            if held:
                self.clock.set("held", 0)
        if action == "restart":
            self.clock.set("end", 1)
        if action in ORDERS:
            self._order(action, text)
        self.on_log("INFO", f"operator: {action}" + (f": {text}" if text else ""))
        self._say(MessageKind.OPERATOR, text, action=action, t_ns=t_ns)

    def _order(self, action: str, text: str) -> None:
        """Send the bridge an operator's order for an image; orders by name are kept for a bridge that is restarted."""
        if text:
            self._orders.append((action, text))
        if (bridge := self.children.get("bridge")) is not None:
            with suppress(OSError):  # the bridge is being restarted
                bridge.pipe.send_bytes(json.dumps({"order": action, "text": text}).encode())

    def _say(self, kind: MessageKind, text: str, stage: str = "", action: str = "", t_ns: int | None = None) -> None:
        """Put a message into the record; never blocks."""
        ring = self.rings["messages"]
        if ring.closed:
            return
        with ring.reserve(timeout_s=0) as slot:
            slot["kind"], slot["t_ns"] = kind, self.clock.now_ns() if t_ns is None else t_ns
            slot["stage"], slot["action"] = stage.encode(), action.encode()
            slot["text"] = text.encode(errors="backslashreplace")[:480].decode(errors="ignore").encode()

    def _wind_down(self) -> None:
        """Stop the scanner once the presenter's link has closed; let ingest hand over its last volumes once the scanner has gone.

        A recording is delivered to its end, even after the last generation, unless the session was asked to end.
        """
        done = {name for name, child in self.children.items() if child.done}
        recording = self.plan.config.acquisition.source == "replay" and not (self.clock.get("drain") or self.clock.get("end"))
        if "bridge" in done and not recording:
            self.clock.set("stop_scanner", 1)
        if "bridge" in done:
            self.clock.set("presenter_wake_ns", NEVER)
        if "scanner" in done or ("bridge" in done and "scanner" not in self.children):
            self.clock.set("drain", 1)
        if all(child.done for name, child in self.children.items() if name != "record" and not child.stage.observer):
            self.rings["messages"].close_writing()

    def _watch(self) -> None:
        """Raise an error if a stage has left messages unread for longer than its deadline."""
        now = time.monotonic()
        for child in self.children.values():
            for name in child.stage.reads:
                lag = self.rings[name].lag(child.stage.name)
                position = self.rings[name].published - lag
                seen, since = child.progress.get(name, (-1, now))
                if lag == 0 or position != seen:
                    child.progress[name] = (position, now)
                elif now - since > child.stage.deadline_s and not child.done:
                    raise StageError(child.stage.name, f"has not read from '{name}' for {now - since:.0f} s, while {lag} messages wait")

    def _hear(self) -> None:
        """Raise an alarm if no volumes arrive, and hold fixation if images can no longer be scored.

        Raises
        ------
        StageError
            Nobody attends who could answer an alarm, and the longest wait is over.
        """
        silence, clock = self.silence, self.clock
        if clock.ending or clock.get("drain") or self.children["bridge"].done:
            return
        news = silence.look(now_s := clock.now_s())
        if news is not None and news.alarm:
            self._warn(news.text, alarm=True)
            clock.set("held", int(news.hold))
        elif news is not None:
            self._warn(news.text)
            if not self.plan.attended:
                clock.set("held", 0)
        if clock.get("held") and not self.plan.attended and now_s - silence.since_s > ALONE_S:
            raise StageError("ingest", f"{self.warnings[-1]} Nobody is at the console or the terminal to decide")

    def _unscored(self) -> bool:
        """Whether images were shown that could not be scored, because no volumes arrived."""
        if self.plan.config.acquisition.source == "replay" or self.plan.condition in MEASURED:
            return False  # a recording may be shorter than the session; ratings need no volumes
        unscored = self.clock.get("shown") and not (self.clock.get("scored") or self.plan.localizer)
        return self.silence.unheard or bool(unscored)

    # --- between the runs of a visit ------------------------------------------------------------------------------------------------

    def offer(self, choices: Sequence[str], on_tick: Callable[[], None]) -> str:
        """Wait until the operator has chosen what follows this run, which is over; return one of `choices`.

        Parameters
        ----------
        choices : sequence of str
            Of :data:`rtevo.session.orders.CHOICES`.
        on_tick : callable
            Called repeatedly meanwhile.
        """
        self._interrupts = self._interrupts_told = 0  # they meant the run
        self.clock.set("chosen", 0)
        self.clock.set("offered", bits_of(choices))
        while not (chosen := self.clock.get("chosen")):
            self.pump(0.05)
            on_tick()
        self.clock.set("offered", 0)
        return choices_of(chosen)[0]

    def part(self) -> None:
        """Let the observers exit, once the next run is known."""
        self._interrupts = self._interrupts_told = 0
        self.clock.set("parted", 1)
        deadline = time.monotonic() + PART_S
        while any(not child.done for child in self.children.values()) and time.monotonic() < deadline:
            self.pump(0.05)

    # --- ending -----------------------------------------------------------------------------------------------------------------

    def abandon(self, reason: str = "") -> None:
        """After a failure: record the reason, ask all processes to save and exit, and wait a moment for them."""
        if reason:
            self._say(MessageKind.ERROR, reason)
        self.clock.set("abort", 1)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and any(c.process.is_alive() and not (c.stays or self._waits(c)) for c in self.children.values()):
            for child in self.children.values():
                self._listen(child)
            time.sleep(0.02)
        self.dismiss(observers=self.plan.visit is None)

    def dismiss(self, observers: bool = True) -> None:
        """End all processes except those that stay for the next run, and, unless `observers`, except the observers that still run."""
        here = {name: child for name, child in self.children.items() if child.stage.observer and not (observers or child.done)}
        leaving = [child for name, child in self.children.items() if name not in here]
        for child in leaving:
            if self._standing is not None and child.stays:
                self._standing.add(child)
            elif child.process.is_alive():
                child.process.kill()
        for child in leaving:
            if not child.stays:
                let_go(child)
        self.children = here

    @property
    def told(self) -> dict[str, Any]:
        """The reports of the stages about themselves when they were ready."""
        return self._told or {}

    def ring_statistics(self) -> dict[str, Any]:
        """Return every ring's statistics as plain values."""
        return {name: asdict(ring.statistics()) for name, ring in self.rings.items()}


def _ordered(plan: Plan) -> list[tuple[str, str]]:
    """Read the operator's orders for images in the earlier parts of a session."""
    notices = of_kind(earlier(plan.out, plan.part), Notice) if plan.part else ()
    return [(n.action, n.text) for n in notices if n.level == "operator" and n.action in ORDERS and n.text]
