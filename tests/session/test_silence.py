"""A scanner that is not heard: when an alarm is due, what it says, and what follows."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from rtevo import supervisor as module
from rtevo.config import build
from rtevo.errors import StageError
from rtevo.session.plan import MEASURED
from rtevo.session.pulses import Heard
from rtevo.session.silence import ALONE_S, Answers, Silence
from rtevo.supervisor import ENDS, Supervisor

S = 10**9
TR_S = 2.0


@pytest.mark.parametrize(
    ("heard", "tr_s", "limit_s", "kind"),
    [
        (Heard(trigger_s=10.0), 2.0, 15.0, "volumes"),  # none has come
        (Heard(trigger_s=10.0, volume_s=40.0), 2.0, 45.0, "volumes"),
        (Heard(trigger_s=10.0, volume_s=40.0), 3.0, 46.0, "volumes"),  # two repetition times are longer than 5 s
        (Heard(trigger_s=10.0, volume_s=40.0, delay_s=8.0), 2.0, 53.0, "volumes"),  # this scanner's export is slow
        (Heard(early_s=7.0), 2.0, 12.0, "trigger"),
    ],
)
def test_an_alarm_is_due_after_two_repetition_times_or_5_s_beyond_the_delay(heard: Heard, tr_s: float, limit_s: float, kind: str) -> None:
    assert heard.silence(limit_s, tr_s, 5.0) == ""
    assert heard.silence(math.nextafter(limit_s, math.inf), tr_s, 5.0) == kind


def test_before_anything_has_come_nothing_is_silent() -> None:
    assert Heard().silence(1e6, TR_S, 5.0) == ""


def test_volumes_that_cannot_be_aligned_are_as_good_as_none() -> None:
    heard = Heard(trigger_s=0.0, volume_s=20.0)
    assert [Heard(0.0, 20.0, unusable=k).silence(20.0, TR_S, 5.0) for k in (2, 3)] == ["", "usable"]
    assert heard.silence(20.0, TR_S, 5.0) == ""


@pytest.fixture
def watched() -> Any:
    """A supervisor with plain shared words, its bridge, and what it has said."""
    config = build({"session": {"speed": 1.0}})
    plan = SimpleNamespace(config=config, condition="brain", tr_s=TR_S, devices=1, attended=True, part=0, localizer=False)
    supervisor = Supervisor(plan)  # type: ignore[arg-type]
    words: dict[str, int] = {}
    clock = SimpleNamespace(
        get=lambda word: words.get(word, 0),
        set=words.__setitem__,
        now_s=lambda: words.get("now", 0) / S,
        now_ns=lambda: words.get("now", 0),
        ending=False,
    )
    supervisor.clock = clock  # type: ignore[assignment]
    supervisor.silence = Silence(plan, clock)  # type: ignore[arg-type]
    supervisor.children["bridge"] = SimpleNamespace(done=False)  # type: ignore[assignment]
    said: list[tuple[str, str]] = []
    supervisor._say = lambda kind, text, *_, **more: said.append((kind.name, text or more["action"]))  # type: ignore[method-assign]
    words |= {"trigger_ns": 10 * S, "volume_ns": 40 * S, "volume_count": 15, "placed": 1, "shown": 1}
    return supervisor, words, said


def hear(watched: Any, now_s: float) -> list[tuple[str, str]]:
    supervisor, words, said = watched
    said.clear()
    words["now"] = round(now_s * S)
    supervisor._hear()
    return said


def test_an_alarm_is_said_once_with_what_to_do_and_images_are_held(watched: Any) -> None:
    supervisor, words, _ = watched
    assert hear(watched, 44.9) == []
    [(kind, text)] = hear(watched, 45.2)
    assert kind == "ALARM"
    assert text.startswith("no volume has come in for 5.2 s; 15 had before: check that the scanner still runs and exports")
    assert text.endswith("The participant sees fixation until you press Go on.")
    assert (words["held"], words["alarm"]) == (1, 1)
    assert hear(watched, 60.0) == []
    assert supervisor._unscored()


def test_the_operator_decides_when_volumes_come_again(watched: Any) -> None:
    supervisor, words, said = watched
    hear(watched, 46.0)
    words["volume_ns"] = 58 * S
    assert hear(watched, 59.0) == [("WARNING", "volumes come in again after 13 s")]
    assert words["held"] == 1
    said.clear()
    supervisor.operate("seen", "", 1)
    supervisor.operate("seen", "", 1)
    supervisor.operate("go_on", "", 2)
    supervisor.operate("go_on", "", 2)
    assert (words["held"], words["seen"]) == (0, 1)
    assert said == [("OPERATOR", "seen"), ("OPERATOR", "go_on")]


def test_where_nobody_attends_images_go_on_with_the_volumes_and_without_them_the_session_fails(watched: Any) -> None:
    supervisor, words, _ = watched
    supervisor.plan.attended = False
    hear(watched, 46.0)
    words["volume_ns"] = 58 * S
    hear(watched, 59.0)
    assert words["held"] == 0
    hear(watched, 70.0)
    assert words["held"] == 1
    with pytest.raises(StageError, match=r"'ingest' failed: no volume has come in .* Nobody is at the console or the terminal"):
        hear(watched, 70.0 + ALONE_S + 1)


def test_a_run_that_was_started_again_under_another_series_is_named(watched: Any) -> None:
    supervisor, words, _ = watched
    hear(watched, 46.0)
    supervisor.silence.elsewhere("series 8 'bold'")
    [(kind, text)] = hear(watched, 46.5)
    assert (kind, words["alarm"], words["held"]) == ("ALARM", 2, 1)
    assert "series 8 'bold' comes in instead: if the run was restarted" in text


def test_a_run_that_was_started_again_at_once_is_named_when_the_silence_is_an_alarm(watched: Any) -> None:
    """Another series is noticed before the alarm is due; if volumes of the run come later, it no longer matters."""
    supervisor, words, _ = watched
    supervisor.silence.elsewhere("series 8 'bold'")
    assert hear(watched, 42.0) == []
    [(_, text)] = hear(watched, 46.0)
    assert "series 8 'bold' comes in instead" in text
    words |= {"volume_ns": 47 * S, "volume_count": 16}
    hear(watched, 48.0)
    [(_, text)] = hear(watched, 53.0)
    assert "instead" not in text


def test_volumes_without_a_trigger_are_an_alarm_and_hold_nothing(watched: Any) -> None:
    _, words, _ = watched
    words |= {"trigger_ns": 0, "placed": 0, "early_ns": 30 * S}
    [(kind, text)] = hear(watched, 36.0)
    assert kind == "ALARM"
    assert text.startswith("no trigger has come in, although volumes do since 6 s: check the trigger's cable and box at the stimulus PC")
    assert words.get("held", 0) == 0
    words["trigger_ns"] = 37 * S
    assert hear(watched, 38.0) == [("WARNING", "the trigger has come after 2 s")]


@pytest.mark.parametrize(("condition", "unscored"), [("brain", True), ("sham", True), ("ratings", False)])
def test_a_session_without_a_score_is_never_completed(watched: Any, condition: str, unscored: bool) -> None:
    supervisor, words, _ = watched
    supervisor.plan.condition = condition
    assert supervisor._unscored() == unscored
    words["scored"] = 1
    assert not supervisor._unscored()
    assert module.ENDS == ENDS == ("", "completed", "stopped", "unscored")


@pytest.mark.parametrize("condition", sorted(MEASURED))
def test_a_participant_who_does_not_answer_any_more_is_one_alarm_and_one_line_when_answers_come_again(condition: str) -> None:
    answers = Answers(condition)
    values = [3.0, *[math.nan] * 4, 2.0, *[math.nan] * 12, 1.0, 2.0, math.nan]
    said = [(number, news.alarm, news.text) for number, value in enumerate(values) if (news := answers.take(value)) is not None]
    assert [(number, alarm) for number, alarm, _ in said] == [(10, True), (18, False)]
    assert said[0][2].startswith("the last 5 images have no r")
    assert said[1][2] == "images have answers again, after 12 without"
