"""Which volumes of a run make today's reference, and what becomes of attempts to place the decoder."""

from __future__ import annotations

import numpy as np
import pytest

from rtevo.config import Config, build
from rtevo.decode import Decoder
from rtevo.place import Verdict
from rtevo.records import Decision, Grid
from rtevo.simulate import Simulation, make_decoder
from rtevo.simulate.head import HeadMotion
from rtevo.simulate.scanner import Scanner
from rtevo.simulate.today import Today
from rtevo.stages.decoding import Decoding
from rtevo.stages.placing import FirstVolumes, Hints

VOXEL_MM = (5.0, 5.0, 5.5)
TR_S = 2.0
ELSEWHERE = "shift=14 -9 6, turn=5 -4 8, slab=-6 4 3, voxel=4.5 4.5 5"


def settings(today: str = "") -> Simulation:
    shape = (48, 48, 21)
    return Simulation(tr_s=TR_S, shape=shape, voxel_size_mm=VOXEL_MM, motion_mm=0.1, today=Today.parse(today) if today else Today())


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    made = make_decoder(settings(), duration_s=60)
    return Decoder(made.grid, made.reference.astype(np.float32), made.mask, made.weights, "liking", {}, made.noise_sd)


def volumes(today: str, count: int) -> tuple[list[np.ndarray], Grid]:
    """What the scanner gives of the simulated head while nothing is shown."""
    own = settings(today)
    scanner = Scanner(own.head(), own)
    scanner.motion = HeadMotion(np.zeros(6), *[np.zeros((6, 1))] * 3)
    found = []
    for index in range(count):
        scanner.prepare(index)
        assert scanner._prepared is not None
        found.append(scanner._prepared[1])
    return found, own.grid


# --- today's reference -----------------------------------------------------------------------------------------------------------------


def ball(level: float = 100.0) -> np.ndarray:
    x = np.indices((16, 16, 16)) - 7.5
    return np.asarray(level * np.exp(-((x**2).sum(axis=0) / 30) ** 2), np.float32)


def first(levels: list[float], moved_mm: dict[int, float] | None = None) -> FirstVolumes:
    found = FirstVolumes(tr_s=2.0)
    for k, level in enumerate(levels):
        motion = np.zeros(6)
        motion[1] = (moved_mm or {}).get(k, 0.0)
        found.add(ball(level), motion, np.eye(4))
    return found


def test_three_steady_volumes_and_six_seconds_are_waited_for() -> None:
    assert first([100, 100]).steady() == ()
    assert len(first([100, 100.2, 99.9]).steady()) == 3
    slow = FirstVolumes(tr_s=0.8)
    for _ in range(7):
        slow.add(ball(), np.zeros(6), np.eye(4))
    assert slow.steady() == ()
    slow.add(ball(), np.zeros(6), np.eye(4))
    assert len(slow.steady()) == 8


def test_volumes_before_steady_state_do_not_count() -> None:
    levels = [160, 112, 103, 100, 100.1, 99.9]
    assert first(levels[:5]).steady() == ()
    found = first(levels).steady()
    assert [float(v.max()) for v in found] == pytest.approx([ball(level).max() for level in levels[3:]])


def test_volumes_where_the_head_lay_elsewhere_do_not_count() -> None:
    assert first([100] * 3, {1: 3.0}).steady() == ()
    found = first([100, 100, 101, 100], {2: 3.0}).steady()
    assert len(found) == 3
    assert all(float(v.max()) < float(ball(100.5).max()) for v in found)


# --- attempts --------------------------------------------------------------------------------------------------------------------------


def decoding(decoder: Decoder, decide: object = None, config: Config | None = None) -> Decoding:
    return Decoding(config or build({}), decoder, TR_S, 0, decide, Hints())  # type: ignore[arg-type]


def feed(work: Decoding, run: list[np.ndarray], grid: Grid) -> None:
    for index, volume in enumerate(run):
        work.learn(work.align(index, volume, 0, grid))


def test_on_its_own_grid_the_decoder_is_used_as_it_is_from_the_first_volume_on(decoder: Decoder) -> None:
    run, grid = volumes("", 2)
    work = decoding(decoder)
    feed(work, run, grid)
    assert [(a.number, a.volume, a.own_grid, a.decision) for a in work.news] == [
        (0, 0, True, Decision.PENDING),
        (0, 0, True, Decision.ACCEPTED),
    ]
    assert work.news[0].placement.verdict == Verdict.GOOD
    assert work.decoder is decoder


def test_on_another_grid_it_is_placed_on_the_first_steady_volumes(decoder: Decoder) -> None:
    run, grid = volumes(ELSEWHERE, 5)
    work = decoding(decoder)
    feed(work, run, grid)
    attempt = work.news[-1]
    assert (attempt.number, attempt.volume, attempt.own_grid, attempt.decision) == (0, 2, False, Decision.ACCEPTED)
    pose = Today.parse(ELSEWHERE).pose
    inside = np.argwhere(decoder.mask) @ decoder.grid.affine[:3, :3].T + decoder.grid.affine[:3, 3]
    error = (inside @ attempt.placement.matrix[:3, :3].T + attempt.placement.matrix[:3, 3]) - (inside @ pose[:3, :3].T + pose[:3, 3])
    assert np.linalg.norm(error, axis=1).mean() < 0.5  # a tenth of a voxel
    assert work.decoder is not None
    assert work.decoder.grid.difference(grid) == ""


def test_what_waits_for_a_decision_is_scored_as_soon_as_it_is_decided(decoder: Decoder) -> None:
    run, grid = volumes(ELSEWHERE, 10)
    at_once, later = decoding(decoder), decoding(decoder, lambda _: Decision.PENDING)
    for work in (at_once, later):
        work.onset((0, 0), 2.0)
        feed(work, run, grid)
    assert later.undecided is not None
    assert later.scores() == ([], pytest.approx(np.nan, nan_ok=True))
    later.decide(Decision.ACCEPTED, 9)
    (early,), _ = at_once.scores(final=True)
    (late,), _ = later.scores(final=True)
    assert (late.score, late.score_se, late.volumes_used) == (early.score, early.score_se, early.volumes_used)


def test_the_next_volumes_are_tried_where_somebody_says_so(decoder: Decoder) -> None:
    run, grid = volumes(ELSEWHERE, 8)
    decisions = iter([Decision.AGAIN, Decision.ACCEPTED])
    work = decoding(decoder, lambda _: next(decisions))
    feed(work, run, grid)
    made = [(a.number, a.volume, a.decision) for a in work.news if a.decision != Decision.PENDING]
    assert made == [(0, 2, Decision.AGAIN), (1, 5, Decision.ACCEPTED)]


def test_another_part_on_the_same_grid_goes_on_and_on_another_is_placed_anew(decoder: Decoder) -> None:
    run, grid = volumes(ELSEWHERE, 4)
    work = decoding(decoder)
    feed(work, run, grid)
    before = work.decoder
    work.interrupt()
    assert not work.placed
    work.learn(work.align(4, run[0], 0, grid))
    assert work.placed
    assert work.decoder is before
    work.interrupt()
    other, another = volumes("slab=0 3 0", 4)
    for index, volume in enumerate(other, 5):
        work.learn(work.align(index, volume, 0, another))
    assert work.decoder is not None
    assert work.decoder.grid.difference(another) == ""


def test_volumes_that_hold_nothing_do_not_keep_the_next_ones_from_being_used(decoder: Decoder) -> None:
    run, grid = volumes(ELSEWHERE, 4)
    work = decoding(decoder)
    feed(work, [np.zeros(grid.shape, np.float32), *run], grid)
    assert work.placed


