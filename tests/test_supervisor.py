"""What the supervisor makes of its stages, without starting any: stalls, and whose death was the first."""

from __future__ import annotations

import json
import multiprocessing as mp
from types import SimpleNamespace
from typing import Any

import pytest

from rtevo import supervisor as module
from rtevo.children import Standing
from rtevo.errors import StageError
from rtevo.records import Decision
from rtevo.session.rings import readers_of
from rtevo.stages.table import LOCALIZER, STAGES, Stage
from rtevo.supervisor import Supervisor

DECODE = next(stage for stage in STAGES if stage.name == "decode")


class FakeRing:
    def __init__(self, published: int, lag: int) -> None:
        self.published, self.behind = published, lag

    def lag(self, reader: str) -> int:
        return self.behind


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A supervisor of one stage with fake rings and a clock that a test moves."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: now.s)
    supervisor = Supervisor(SimpleNamespace(devices=1, part=0))  # type: ignore[arg-type]
    supervisor.children["decode"] = module.Child(DECODE, None, None)  # type: ignore[arg-type]
    supervisor.rings = {"volumes": FakeRing(3, 2), **{name: FakeRing(0, 0) for name in ("events", "physiology")}}  # type: ignore[dict-item]
    return supervisor, now


def test_a_stage_that_takes_nothing_for_its_deadline_has_stalled(watched: Any) -> None:
    supervisor, now = watched
    supervisor._watch()
    now.s = DECODE.deadline_s - 1
    supervisor._watch()
    now.s = DECODE.deadline_s + 1
    with pytest.raises(StageError, match="stage 'decode' failed: has not read from 'volumes' for 31 s, while 2 messages wait"):
        supervisor._watch()


def test_a_slow_stage_that_goes_on_has_not_stalled(watched: Any) -> None:
    supervisor, now = watched
    for step in range(5):
        now.s = step * (DECODE.deadline_s - 1)
        supervisor.rings["volumes"].published += 1  # one more came, one more was taken
        supervisor._watch()


def test_the_stage_that_died_is_named_not_those_that_lost_it(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, _ = watched
    found = [[(StageError("ingest", "its reader is dead"), True)], [(StageError("decode", "was killed"), False)]]
    monkeypatch.setattr(supervisor, "_failures", lambda timeout_s: found.pop(0))
    with pytest.raises(StageError, match="stage 'decode' failed: was killed"):
        supervisor.pump(0)


@pytest.fixture
def starting(watched: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A supervisor whose one stage says, every 600 s, how far it is; it is ready with the last word."""
    supervisor, now = watched
    child, printed = supervisor.children["decode"], []
    words: list[str] = []

    def pump(timeout_s: float) -> None:
        now.s += 600
        child.doing = words.pop(0)
        child.ready = None if words else {}

    monkeypatch.setattr(module, "stages_of", lambda plan: [])
    monkeypatch.setattr(supervisor, "pump", pump)
    child.pipe = SimpleNamespace(send_bytes=lambda text: None)
    supervisor.clock = SimpleNamespace(get=lambda word: 0, set=lambda *word: None, start=lambda: None)
    supervisor.on_progress = printed.append
    return supervisor, words, printed


def test_a_start_may_take_long_while_it_comes_on(starting: Any) -> None:
    supervisor, words, printed = starting
    words += [f"{k} of 4000 volumes" for k in (1000, 2000, 3000, 4000)]
    supervisor.start()
    assert printed == [f"waiting for decode{done}" for done in ("", *(f" ({k} of 4000 volumes)" for k in (1000, 2000, 3000)))]


def test_a_start_that_does_not_come_on_has_failed(starting: Any) -> None:
    supervisor, words, _ = starting
    words += ["", "", ""]
    with pytest.raises(StageError, match="stage 'decode' failed: was not ready within 900 s"):
        supervisor.start()


@pytest.fixture
def operated() -> Any:
    """A supervisor with plain shared words, and what it has said."""
    said: list[tuple[str, str, str]] = []
    supervisor = Supervisor(SimpleNamespace(devices=1, part=0))  # type: ignore[arg-type]
    words = dict.fromkeys(("waiting", "pause", "held", "end", "abort", "restart", "placement_asked", "placement_answer"), 0)
    supervisor.clock = SimpleNamespace(get=words.__getitem__, set=words.__setitem__, lock_step=False)  # type: ignore[assignment]
    supervisor._say = lambda kind, text, stage="", action="", t_ns=0: said.append((kind.name, action, text))  # type: ignore[method-assign]
    return supervisor, words, said


def test_what_the_operator_does_has_its_effect_and_is_recorded_once(operated: Any) -> None:
    supervisor, words, said = operated
    words["waiting"] = 1
    for action, text in (("start", ""), ("start", ""), ("pause", ""), ("mark", "coughs"), ("go_on", ""), ("go_on", ""), ("stop", "")):
        supervisor.operate(action, text, 5)
    assert {name for name, value in words.items() if value} == {"end"}
    assert said == [("OPERATOR", action, "coughs" if action == "mark" else "") for action in ("start", "pause", "mark", "go_on", "stop")]


def test_a_question_about_the_placement_is_answered_once_asked_and_a_new_run_ends_this_part(operated: Any) -> None:
    supervisor, words, said = operated
    supervisor.operate("accept", "", 5)
    assert (words["placement_answer"], said) == (0, [])  # nobody has asked
    words["placement_asked"] = 2
    supervisor.operate("again", "", 6)
    assert words["placement_answer"] == 4 * 2 + Decision.AGAIN
    supervisor.operate("accept", "", 7)
    assert words["placement_answer"] == 4 * 2 + Decision.ACCEPTED
    supervisor.operate("restart", "", 8)
    assert (words["restart"], words["end"]) == (1, 1)
    assert [action for _, action, _ in said] == ["again", "accept", "restart"]


def test_control_c_is_an_operators_action_and_a_second_one_ends_at_once(operated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, words, said = operated
    monkeypatch.setattr(supervisor, "_failures", lambda timeout_s: [])
    supervisor.stop()
    supervisor.pump(0)
    supervisor.pump(0)
    assert (words["end"], said) == (1, [("OPERATOR", "stop", "at the terminal")])
    supervisor.stop()
    with pytest.raises(KeyboardInterrupt):
        supervisor.pump(0)


def test_a_dead_observer_is_started_again_then_done_without_and_told(operated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, _, said = operated
    stage = Stage("console", lambda context: None, restarts=1, observer=True)
    pipe = SimpleNamespace(poll=lambda: False, close=lambda: None)
    dead = SimpleNamespace(exitcode=-9, sentinel=0)

    def spawn(stage: Stage) -> None:
        supervisor.children[stage.name] = module.Child(stage, dead, pipe)  # type: ignore[arg-type]

    monkeypatch.setattr(supervisor, "_spawn", spawn)
    monkeypatch.setattr(module, "wait", lambda objects, timeout_s: [0])
    spawn(stage)
    for _ in range(4):
        supervisor.pump(0)
    assert supervisor.children["console"].done
    died = "console was killed by signal 9 (SIGKILL)"
    assert [text for _, _, text in said] == [f"{died} and was restarted", f"{died}: the session continues without it"]


@pytest.mark.parametrize(("level", "kind", "alarms"), [("WARNING", "WARNING", 0), ("ERROR", "ALARM", 1), ("INFO", None, 0)])
def test_what_a_stage_reports_as_an_error_is_an_alarm(operated: Any, level: str, kind: str | None, alarms: int) -> None:
    supervisor, words, said = operated
    words["alarm"] = 0
    messages = [json.dumps({"kind": "log", "level": level, "text": "a sender was refused"}).encode()]
    pipe = SimpleNamespace(poll=lambda: bool(messages), recv_bytes=messages.pop)
    supervisor._listen(module.Child(DECODE, None, pipe))  # type: ignore[arg-type]
    assert words["alarm"] == alarms
    assert said == ([(kind, "", "a sender was refused")] if kind else [])


def test_every_stage_reads_what_it_is_declared_to_read() -> None:
    for stage in STAGES:
        assert all(stage.name in readers_of(ring) for ring in stage.reads)
    for stage in LOCALIZER:
        assert all(stage.name in readers_of(ring, localizer=True) for ring in stage.reads)


@pytest.mark.parametrize(
    ("action", "asking", "answering"),
    [("admit", "presenter_waits", "presenter_admitted"), ("correct", "start_shift", "start_accepted")],
)
def test_what_nobody_has_asked_is_not_answered(operated: Any, action: str, asking: str, answering: str) -> None:
    supervisor, words, said = operated
    words |= {asking: 0, answering: 0}
    supervisor.operate(action, "", 5)
    assert (words[answering], said) == (0, [])
    words[asking] = 3
    supervisor.operate(action, "at the terminal", 6)
    assert words[answering] == 3
    assert said == [("OPERATOR", action, "at the terminal")]


def test_a_process_that_stayed_and_has_died_is_not_taken_into_the_next_run() -> None:
    mine, its = mp.Pipe()
    process = mp.get_context("fork").Process(target=its.recv)
    process.start()
    with Standing() as standing:
        standing.add(module.Child(DECODE, process, mine))
        taken = standing.take(DECODE, None)  # type: ignore[arg-type]
        assert taken is not None
        assert taken.ready is None  # it has to become so anew
        process.join(60)
        assert process.exitcode == 0  # what it was sent was the next run's plan
        standing.add(taken)
        assert standing.take(DECODE, None) is None  # type: ignore[arg-type]
        assert standing.take(DECODE, None) is None  # type: ignore[arg-type]
