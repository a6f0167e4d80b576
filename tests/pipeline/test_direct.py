"""Sessions that evolve from the series itself: interrupted, taken up, computed again to the last bit, yoked to one another."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtevo.config import load
from rtevo.errors import ConfigError
from rtevo.evolve import Direct, from_state
from rtevo.latent import LatentSpace
from rtevo.record import LOG, LatentRecord, RecordedSession, SeriesRecord, evolution_of, projected_of
from rtevo.records import EventKind
from rtevo.run import main
from rtevo.session.course import check_partner, make_course
from tests.support.killed import session_file

from .conftest import Warm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("direct")]  # one session for all


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sham session that was interrupted and resumed."""
    out = tmp_path_factory.mktemp("session") / "out"
    file = session_file(out.parent, {"strategy": "direct", "probe_every": 4, "condition": "sham"})
    assert Warm([str(file), "--out", str(out), "--generations", "4"], out.parent, out.parent / "printed").wait(200) == 0
    lines = (out / LOG).read_bytes().splitlines(keepends=True)
    onsets = RecordedSession(out).events(EventKind.ONSET)
    (out / LOG).write_bytes(b"".join(lines[: onsets[2 * len(onsets) // 3].seq + 1]))
    assert Warm(["--resume", str(out)], out.parent, out.parent / "printed").wait(200) == 0
    return out


def test_every_volume_that_was_used_is_in_the_log_once_with_its_part(session: Path) -> None:
    recorded = RecordedSession(session)
    series = recorded.records(SeriesRecord)
    indices = [record.index for record in series]
    assert indices == sorted(set(indices))
    firsts = [part.start.first_volume for part in recorded.parts]
    assert [record.part for record in series] == [int(index >= firsts[1]) for index in indices]
    assert np.isfinite([record.value for record in series]).all()
    taken = [record.volumes_taken or 0 for record in recorded.records(LatentRecord)]
    assert taken == sorted(taken)
    assert taken[-1] > 20
    evolver = from_state(evolution_of(session)["evolver"])
    assert isinstance(evolver, Direct)
    assert len(evolver.history().ids) > 5


def test_computed_again_it_asks_for_the_same_latents_to_the_last_bit(session: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(["--rerun", str(session), "--out", str(again)]) == 0
    found = json.loads((again / "rerun.json").read_text())
    assert (found["scores_identical"], found["latents_identical"]) == (True, True)
    series = [[(r.index, r.part, r.value) for r in RecordedSession(out).records(SeriesRecord)] for out in (session, again)]
    assert series[0] == series[1]


def test_another_session_is_yoked_to_its_volumes_where_the_repetition_time_is_the_same(session: Path) -> None:
    recorded = RecordedSession(session)
    yoked = load(session / "session.toml", {("session", "condition"): "yoked", ("evolution", "yoked_to"): str(session)})
    course = make_course(yoked, "yoked", LatentSpace.load(session / "latent_space.npz"))
    own = projected_of(recorded.records(SeriesRecord)[3])
    course.due()
    course.appeared(0, 0, own.t_s - 8.0, 3.0)
    for volume in recorded.records(SeriesRecord)[:8]:
        course.volume(0, replace(projected_of(volume), value=math.nan))  # its own values do not count
    assert np.isfinite(course.evolver.history().fitness).all()
    check_partner(yoked, recorded.start.tr_s)
    with pytest.raises(ConfigError, match=r"expects a session with this one's TR, 1\.5 s, found 2 s"):
        check_partner(yoked, 1.5)
