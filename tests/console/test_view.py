"""The operator's messages, from made-up logs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rtevo.config import build
from rtevo.console import charts, markup
from rtevo.console.view import View, mean_and_error
from rtevo.record import LogFollower, LogWriter, Record, record_of
from rtevo.records import Decision, EventKind, VolumeFlag

S = 1_000_000_000
PLACED = record_of({"type": "placements", "decision": int(Decision.ACCEPTED), "verdict": "good", "expected_error_mm": 0.1})
MS = 1_000_000


def event(kind: EventKind, t_s: float, generation: int = -1, candidate: int = -1, **more: Any) -> Record:
    where, t_ns = {"generation": generation, "candidate": candidate}, round(t_s * S)
    times = {"t_ns": t_ns, "clock_ns": t_ns + 5 * MS, "error_ns": MS}
    return record_of({"type": "events", "kind": kind, "value": math.nan, "text": "", **times, **where, **more})


def volume(index: int, displacement_mm: float = 0.1, flags: int = 0, took_ms: int = 50, x_mm: float = 0.0) -> Record:
    motion = [x_mm, 0.0, 0.0, 0.01, 0.0, 0.0]
    times = {"closed_ns": 0, "aligned_ns": took_ms * MS, "clock_ns": index * S}
    found = {"framewise_displacement_mm": displacement_mm, "motion": motion}
    return record_of({"type": "aligned", "index": index, "flags": flags, **found, **times})


def image(generation: int, candidate: int, asked_ms: int = 100, painted_ms: int = 300) -> list[Record]:
    where = {"generation": generation, "candidate": candidate}
    return [
        record_of({"type": "latents", "probe": -1, "scored_ns": asked_ms * MS, "evolved_ns": asked_ms * MS, **where}),
        record_of({"type": "images", "painted_ns": painted_ms * MS, "evolved_ns": 100 * MS, **where}),
    ]


def score(generation: int, candidate: int, value: float, error: float = 0.5) -> list[Record]:
    where = {"generation": generation, "candidate": candidate}
    return [
        record_of({"type": "scores", "score": value, "score_se": error, "closed_ns": S, "scored_ns": S + 60 * MS, **where}),
        record_of({"type": "fitness", "fitness": value, "decided_ns": S + 62 * MS, **where}),
    ]


def approving(view: View, approval: str) -> Any:
    config = build({"safety": {"approval": approval}, "console": {"port": 8080}})
    return SimpleNamespace(view=view, over=False, plan=SimpleNamespace(config=config), clock=SimpleNamespace(now_s=lambda: 19.0))


@pytest.mark.parametrize("approval", ["veto", "each"])
def test_who_approves_sees_what_comes_next_and_no_scores(approval: str) -> None:
    view = View(build({"safety": {"approval": approval}, "console": {"port": 8080}}), 2.0)
    for record in [*session(), *image(1, 2), *image(2, 0), *image(2, 1)]:
        view.take(record)
    assert view.blinded
    assert all(math.isnan(trial.value) and math.isnan(trial.fitness) for trial in view.trials.values())
    assert [(t.generation, t.candidate) for t in view.upcoming] == [(1, 2), (2, 0), (2, 1)]
    page = markup.upcoming(approving(view, approval))
    assert page.count("<img ") == 3
    first, *others = page.split("</figure>")[:3]
    assert 'data-key="V"' in first
    assert not any('data-key="V"' in other for other in others)
    assert ('data-action="show"' in first) == (approval == "each")
    view.take(record_of({"type": "operator", "action": "veto", "text": "1/2/", "t_ns": 18 * S}))
    view.take(record_of({"type": "operator", "action": "show", "text": "2/0/", "t_ns": 18 * S}))
    view.take(record_of({"type": "images", "generation": 3, "candidate": 0, "refused": 1, "verdict": []}))
    view.take(record_of({"type": "refused", "generation": 3, "candidate": 0, "verdict": []}))
    view.take(event(EventKind.TAKEN, 19, 2, 1, text="operator"))
    assert [(t.generation, t.candidate) for t in view.upcoming] == [(2, 0)]
    assert view.refusals == 1
    assert 'data-action="show"' not in markup.upcoming(approving(view, approval))  # it has been said already
    assert markup.upcoming(approving(view, "none")) == ""


def session() -> list[Record]:
    """Two generations of two images; the last one is on the screen."""
    records = [record_of({"type": "start"}), PLACED, event(EventKind.READY, 0, text="presenter ready: psychopy, 60.000 Hz")]
    records += [*image(0, 0), *image(0, 1), event(EventKind.TRIGGER, 1), *[volume(k) for k in range(20)]]
    for k, (generation, candidate) in enumerate([(0, 0), (0, 1), (1, 0)]):
        records += [event(EventKind.ONSET, 5 + 4 * k, generation, candidate), event(EventKind.OFFSET, 8 + 4 * k, generation, candidate)]
        records += [*image(1, 0), *score(generation, candidate, 1234.5 + k)]
    return [*records, *image(1, 1), event(EventKind.ONSET, 17, 1, 1)]


def view(records: list[Record], condition: str = "brain", **evolution: Any) -> View:
    blinded = {"blinding_key": __file__} if condition == "blinded" else {}
    config = build({"session": {"condition": condition}, "evolution": {**blinded, **evolution}})
    made = View(config, tr_s=1.0)
    grid = {"type": "grid", "shape": [80, 80, 35], "affine": np.diag([3.0, 3.0, 3.3, 1.0]).tolist()}
    for record in [record_of(grid), *records]:
        made.take(record)
    return made


def desk(
    seen: View, now_s: float = 18.0, state: str = "running", offered: tuple[str, ...] = (), between: bool = False, said: Sequence[str] = ()
) -> Any:
    clock = SimpleNamespace(now_s=lambda: now_s, now_ns=lambda: round(now_s * S))
    over = state in ("completed", "stopped", "failed", "between")
    plan = SimpleNamespace(config=seen.config, out=Path("/sessions/x"))
    visit = {"offered": offered, "between": between, "said": said, "ended": "completed" if offered else state if over else ""}
    return SimpleNamespace(view=seen, clock=clock, plan=plan, images=4, depths={"volumes": (1, 16)}, state=state, over=over, **visit)


def page(seen: View) -> str:
    """Everything that a browser is sent of scores."""
    rows = [markup.generation(seen, g, trials, markup.span(seen)) for g, trials in seen.generations]
    parts = [markup.now, markup.health, markup.alarms, markup.figures, markup.state]
    options = [charts.fitness(seen), charts.displacement(seen), charts.motion(seen)]
    return "".join([*rows, markup.messages(seen), *(part(desk(seen)) for part in parts), str(options)])


def test_between_runs_the_page_says_what_may_follow_and_what_the_participant_reads() -> None:
    config = build({"simulation": {"participant": "tcp://127.0.0.1:5556"}, "presentation": {"between_text": "Soon <more>."}})
    seen = View(config, 2.0)
    for record in session():
        seen.take(record)
    told = markup.alarms(desk(seen, state="between", offered=("next", "again", "end"), between=True))
    assert "<b>Next run</b>: evolution and decoder continue" in told
    assert "<b>Same again</b>" in told
    assert "Resume run" not in told
    assert "the participant reads: Soon &lt;more&gt;." in told
    told = markup.alarms(desk(seen, state="between", offered=("next",), said=["[decoder] folder: got <x>", "The participant asks to stop"]))
    assert told.index("<p>[decoder] folder: got &lt;x&gt;</p>") < told.index("<p>The participant asks to stop</p>") < told.index("Next run")
    assert "Text between runs" in markup.now(desk(View(config, 2.0), state="between", between=True))
    assert "The stimulus PC is not connected." in markup.alarms(desk(seen, state="between", offered=("again", "resume", "end")))


def test_a_session_is_followed() -> None:
    seen = view(session())
    assert (seen.scene, seen.showing, seen.shown, len(seen.volumes)) == ("image", (1, 1), 4, 20)
    assert [(g, [t.candidate for t in own]) for g, own in seen.generations] == [(1, [0, 1]), (0, [0, 1])]
    assert seen.means() == [(0, 1235.0, pytest.approx(0.5)), (1, 1236.5, pytest.approx(math.nan, nan_ok=True))]
    assert {name: latency.worst for name, latency in seen.latencies.items()} == {
        "align": 50, "score": 60, "evolve": 2, "paint": 200, "report": pytest.approx(5)
    }  # fmt: skip
    assert {name: latency.deadline_ms for name, latency in seen.latencies.items()}["paint"] == 4000
    assert "presenter" not in seen.presenter
    assert "60.000 Hz" in markup.health(desk(seen))


def test_scores_are_shown_with_their_errors_and_the_best_stands_out() -> None:
    shown = page(view(session()))
    assert "+1234.50" in shown
    assert "± 0.50" in shown
    row = markup.generation(seen := view(session()), 0, seen.generations[-1][1], markup.span(seen))
    assert row.count('class="tile best"') == 1
    assert row.index("+1234.50") < row.index('class="tile best"')


def test_blinded_nothing_of_a_score_is_sent() -> None:
    seen = view(session(), "blinded")
    shown = page(seen)
    assert not [number for number in ("1234", "1235", "1236") if number in shown]
    assert seen.means() == []
    assert all(math.isnan(t.value) and math.isnan(t.fitness) for t in seen.trials.values())
    assert "hidden" in shown
    assert seen.shown == 4  # everything else is


def test_ratings_take_the_place_of_scores() -> None:
    seen = view([*session(), event(EventKind.OFFSET, 20, 1, 1), event(EventKind.RATING, 21, 1, 1, value=3.0)], "ratings")
    assert [t.value for t in seen.trials.values() if not math.isnan(t.value)] == [3.0]


@pytest.mark.parametrize(
    ("records", "now_s", "words"),
    [
        ([], 18, ""),
        ([], 30, "No volume for 11 s"),
        ([volume(20, 0.7)], 20, "The head has just moved by 0.7 mm."),
        ([volume(20, 1.4)], 20, "1.4 mm: the volume is left out"),
        ([volume(20, 0.1, x_mm=-3.4)], 20, "The head lies 3.4 mm from the reference (a voxel is 3.0 mm)"),
        ([volume(20, math.nan, VolumeFlag.MISSING)], 20, "A volume is missing or incomplete."),
        ([volume(20, math.nan, VolumeFlag.UNALIGNED)], 20, "A volume could not be aligned."),
        ([volume(20, took_ms=1200)], 20, "Aligning a volume took 1200 ms: 1000 are allowed."),
        ([event(EventKind.SILENT, 19, text="presenter silent for 2.1 s: waiting for it")], 20, "The stimulus PC does not answer"),
        ([event(EventKind.SILENT, 19, text="presenter silent for 2.1 s: waiting for it"),
          event(EventKind.BACK, 19, text="presenter answers again after 4.0 s")], 20, ""),
        ([event(EventKind.FIXATION, 17)], 20, "The next picture is late: fixation has been held for 3 s."),
        ([event(EventKind.PAUSE, 17)], 20, ""),
        ([event(EventKind.OFFSET, 20, 1, 1, error_ns=500 * MS)], 20, ""),  # a stalled screen
        ([event(kind, 20, 1, 1, error_ns=20 * MS) for kind in (EventKind.OFFSET, EventKind.PULSE)], 20, "known only to 20 ms"),
        ([event(EventKind.END, 19)], 90, ""),
    ],
)  # fmt: skip
def test_what_is_not_in_order_is_said_in_plain_words(records: list[Record], now_s: float, words: str) -> None:
    found = view([*session(), *records]).alarms(now_s, {"volumes": (1, 16)})
    assert len(found) == bool(words), found
    assert words in "".join(found)


def test_a_ring_that_fills_up_is_told() -> None:
    assert view([]).alarms(0, {"volumes": (13, 16)}) == ["13 of 16 slots of volumes are full: its readers cannot keep up."]


def test_pauses_notes_and_warnings_are_listed_the_last_first() -> None:
    done = enumerate([("pause", ""), ("mark", "<b>coughs")])
    told = [record_of({"type": "operator", "action": a, "text": t, "t_ns": k * S}) for k, (a, t) in done]
    seen = view([*session(), *told, record_of({"type": "warning", "text": "decode: holes", "t_ns": 61 * S})])
    shown = markup.messages(seen)
    assert shown.index("decode: holes") < shown.index("mark: &lt;b&gt;coughs") < shown.index("pause after this image")
    assert "<b>coughs" not in shown
    assert "1:01" in shown


def test_a_later_part_of_a_session_begins_its_own_time_and_keeps_what_was() -> None:
    seen = view([*session(), record_of({"type": "start"})])
    assert (seen.run.trigger_ns, seen.scene, seen.shown) == (None, "nothing", 4)


def test_the_end_is_told_with_its_reason() -> None:
    seen = view([*session(), record_of({"type": "error", "text": "stage 'decode' failed: <boom>", "t_ns": S})])
    assert "stage &#x27;decode&#x27; failed: &lt;boom&gt; Results: /sessions/x" in markup.alarms(desk(seen, state="failed"))
    assert "The session is over." in markup.alarms(desk(seen, state="completed"))


def test_nothing_has_happened_yet() -> None:
    assert "Getting ready" in markup.state(desk(view([]), 0.0, "starting"))
    assert page(view([]))


def test_means_have_errors() -> None:
    assert mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert math.isnan(mean_and_error([1.0])[1])


def test_a_log_is_followed_line_by_line_however_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    follower = LogFollower(path)
    assert follower.new() == []
    with LogWriter(path) as log:
        for k in range(3):
            log.append("x", {"k": k})
    whole = path.read_bytes()
    path.unlink()
    found = []
    with path.open("ab", buffering=0) as file:
        for byte in whole:
            file.write(bytes([byte]))
            found += [(record.more or {})["k"] for record in follower.new()]
    assert found == [0, 1, 2]


def test_an_alarm_is_shown_until_it_has_been_seen() -> None:
    view = View(build({}), 1.0)
    for record in session():
        view.take(record)
    view.take(record_of({"type": "alarm", "t_ns": 20 * S, "text": "no volume has come in"}))
    assert view.alarms(20.0, {})[0] == "no volume has come in"
    view.take(record_of({"type": "operator", "t_ns": 21 * S, "action": "seen", "text": ""}))
    assert "no volume has come in" not in view.alarms(21.0, {})
    assert [kind for _, kind, _ in view.messages] == ["alarm", "operator"]


def test_the_time_that_the_model_takes_to_load_is_no_picture_that_came_late() -> None:
    """Pictures that no score had a part in are asked for before the model is loaded, however late they are painted."""
    view = View(build({}), 1.0)
    for record in [event(EventKind.TRIGGER, 1), *image(0, 0, asked_ms=0, painted_ms=90_000), *image(1, 0)]:
        view.take(record)
    assert list(view.latencies["paint"].values) == [200]
    assert view.latencies["paint"].late == 0


def test_fixation_is_held_for_images_that_come_and_for_nothing_else() -> None:
    view = View(build({}), 1.0)
    kinds = [EventKind.PAUSE, EventKind.TRIGGER, EventKind.GO_ON, EventKind.ONSET, EventKind.FIXATION, EventKind.ONSET, EventKind.FIXATION]
    for k, kind in enumerate([*kinds, EventKind.END]):
        view.take(event(kind, k, *(0, 0) if kind == EventKind.ONSET else ()))
    assert view.held == 1


def test_a_presenter_that_waits_is_named_until_it_leaves_or_is_let_in() -> None:
    left, replaced = "the other presenter waits no longer: office (psychopy)", "the operator lets another in: office has taken over"
    for kind, after in ((EventKind.LEFT, left), (EventKind.REPLACED, replaced)):
        view = View(build({}), 2.0)
        view.take(record_of({"type": "start"}))
        view.take(event(EventKind.WAITS, 1, text="another presenter waits: office (psychopy); the session stays with scanner (psychopy)"))
        [alarm] = view.alarms(2.0, {})
        assert alarm.startswith("Another presenter waits: office (psychopy).")
        view.take(event(kind, 3, text=after))
        assert view.alarms(4.0, {}) == []
    view.take(record_of({"type": "operator", "action": "admit", "text": "", "t_ns": 4 * S}))
    assert view.messages[-1][2] == "the waiting presenter is let in"


def test_the_scores_of_an_objectives_maps_stand_beside_its_own_unless_they_are_hidden() -> None:
    both = {"face": [1.25, 0.5], "place": [-0.5, math.nan]}
    record = record_of({"type": "scores", "generation": 0, "candidate": 0, "score": 1.5, "score_se": 0.5, "maps": both})
    seen = view([*image(0, 0), record])
    assert seen.trials[0, 0].maps == seen.score_maps == "face +1.25 ± 0.50, place -0.50"
    assert "candidate-00: face +1.25 ± 0.50, place -0.50" in page(seen)
    assert "face" not in page(view([*image(0, 0), record], "blinded"))


def axes(records: list[Record], **evolution: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    made = charts.fitness(view(records, **evolution))
    return made["xAxis"], made["yAxis"]


def test_axes_make_sense_with_no_score_with_one_and_with_few_of_many_generations() -> None:
    x, y = axes([], generations=300)
    assert (x["min"], x["max"], y["min"], y["max"]) == (0, 9, -1, 1)
    x, y = axes([*image(0, 0), *score(0, 0, -2.91, 0.5)], generations=300)
    assert (y["min"], y["max"], y["interval"]) == (-3.5, -2.0, 0.5)  # its error on both sides, in round numbers
    x, _ = axes([each for g in range(40) for each in (*image(g, 0), *score(g, 0, g))], generations=300)
    assert 40 < x["max"] <= 60
    assert x["max"] % x["interval"] == 0  # so that the ticks lie on generations
    x, y = axes([each for g in range(7) for each in (*image(g, 0), *score(g, 0, 3.0 * g))], generations=7)
    assert (x["max"], x["interval"]) == (8, 1)
    assert y["min"] <= 0
    assert y["max"] >= 18


@pytest.mark.parametrize("values", [[0.0], [1e-9, 2e-9], [0.031, 0.034], [-250.0, 900.0], [7.0, 7.0]])
def test_an_axis_has_round_numbers_and_holds_its_values(values: list[float]) -> None:
    found = charts._round(values, [])
    assert found["min"] <= min(values) + 1e-9
    assert max(values) <= found["max"] + 1e-9
    assert 2 <= (found["max"] - found["min"]) / found["interval"] <= 12 or max(values) < 1e-8


def test_the_question_of_stop_says_that_the_session_goes_on_and_does_not_stay() -> None:
    pytest.importorskip("nicegui", reason="the console is optional: pip install 'rtevo[console]'")
    from rtevo.console.page import ANSWER_S, Page

    closed, said = [], []
    dialog = SimpleNamespace(value=True, close=lambda: closed.append(True))
    asked = SimpleNamespace(stop_dialog=dialog, goes_on=None, _set=lambda _, words: said.append(words))
    for age_s, state in ((1.0, "running"), (ANSWER_S + 1, "running"), (1.0, "failed")):
        asked.desk, asked._asked_s = desk(view(session()), state=state), time.monotonic() - age_s
        Page._draw_question(asked)  # type: ignore[arg-type]
    assert len(closed) == 2
    (words,) = said
    assert "image 4 of 4: the session continues until you stop it" in words


def test_a_localizers_presses_are_judged_as_they_come() -> None:
    view = View(build({"session": {"task": "localizer"}}), 1.0)
    trials = [
        {"block": 0, "place": k, "category": "face", "file": f"{k}.png", "image_s": 0.5, "washout_s": 0.5 + k, "target": k == 1}
        for k in range(3)
    ]
    view.take(record_of({"type": "start", "part": 0, "trials": trials}))
    view.take(event(EventKind.TRIGGER, 1.0))
    assert view.placed  # there is no decoder that would have to be
    for k in range(3):
        view.take(event(EventKind.ONSET, 2.0 + k, 0, k))
        view.take(event(EventKind.OFFSET, 2.5 + k, 0, k))
    view.take(event(EventKind.PRESS, 3.6, text="1"))
    view.take(event(EventKind.PRESS, 9.0, text="1"))
    assert view.task.words() == "1 of 1 targets answered, 0.60 s; 1 false alarms"
    assert view.due_s == pytest.approx(4.0 + 0.5 + 2.5)  # by the last picture's own times
    assert "Block 1: face" in markup.generation(view, 0, list(view.trials.values()), (0.0, 1.0))
