"""What becomes of attempts to place the decoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtevo.config import Config, build
from rtevo.decode import Decoder
from rtevo.errors import DecoderError
from rtevo.place import Verdict
from rtevo.records import Decision, Grid
from rtevo.session.decoding import Decoding
from rtevo.session.placing import Hints
from rtevo.simulate import Simulation, make_decoder
from rtevo.simulate.head import HeadMotion
from rtevo.simulate.scanner import Scanner
from rtevo.simulate.today import Today

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
    early, late = (work.scores(final=True)[0][-1] for work in (at_once, later))
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
    assert not work.renewed
    other, another = volumes("slab=0 3 0", 14)
    for index, volume in enumerate(other, 5):
        work.learn(work.align(index, volume, 0, another))
        if index == 7:
            work.onset((1, 0), 8 * TR_S)
    assert work.decoder is not None
    assert work.decoder.grid.difference(another) == ""
    assert work.renewed
    (score,) = {s.key: s for s in work.scores(final=True)[0]}.values()
    assert (score.key, score.onset_s) == ((1, 0), 8 * TR_S)  # counted through
    assert np.isfinite(score.score)


def test_volumes_that_hold_nothing_do_not_keep_the_next_ones_from_being_used(decoder: Decoder) -> None:
    run, grid = volumes(ELSEWHERE, 4)
    work = decoding(decoder)
    feed(work, [np.zeros(grid.shape, np.float32), *run], grid)
    assert work.placed


def test_a_decoder_of_another_participant_is_doubtful_however_well_it_lies(decoder: Decoder) -> None:
    run, grid = volumes("", 1)
    whose = replace(decoder, settings={"participant": "07"})
    work = decoding(whose, config=build({"session": {"participant": "08"}}))
    feed(work, run, grid)
    assert work.undecided is not None
    assert work.undecided.placement.verdict == Verdict.DOUBTFUL
    assert "participant 07" in work.undecided.placement.reasons[0]
    same = decoding(whose, config=build({"session": {"participant": "07"}}))
    feed(same, run, grid)
    assert same.placed


def saved(path: Path, volume: np.ndarray, grid: Grid) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume, grid.affine), path)
    return path


def test_a_scan_of_this_visit_spares_the_run_the_wait(decoder: Decoder, tmp_path: Path) -> None:
    run, grid = volumes(ELSEWHERE, 4)
    config = build({"decoder": {"scout": str(saved(tmp_path / "scout.nii", run[3], grid))}})
    hints = Hints.of(config, decoder)
    assert hints.placement is not None
    assert hints.placement.verdict == Verdict.GOOD
    work = Decoding(config, decoder, TR_S, 0, None, hints)
    feed(work, run[:1], grid)
    assert work.placed  # from the first volume on: the run lies on the scout's grid
    assert work.news[-1].own_grid
    pose = Today.parse(ELSEWHERE).pose
    np.testing.assert_allclose(work.news[-1].placement.matrix, pose, atol=0.6)  # mm; the matrices' turns differ by far less


def test_a_transform_from_a_file_is_used_and_judged(decoder: Decoder, tmp_path: Path) -> None:
    run, grid = volumes(ELSEWHERE, 4)
    pose = Today.parse(ELSEWHERE).pose
    for name, matrix, verdict in (("right", pose, Verdict.GOOD), ("backwards", np.linalg.inv(pose), Verdict.BAD)):
        np.savetxt(tmp_path / f"{name}.txt", matrix)
        config = build({"decoder": {"placement": str(tmp_path / f"{name}.txt")}})
        work = Decoding(config, decoder, TR_S, 0, None, Hints.of(config, decoder))
        feed(work, run, grid)
        assert work.news[0].placement.verdict == verdict
        assert work.placed == (verdict == Verdict.GOOD)
    assert any("backwards" in reason for reason in work.news[0].placement.reasons)


def test_a_scout_of_somebody_else_is_refused_before_anyone_waits(decoder: Decoder, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(decoder.grid.shape).astype(np.float32)
    config = build({"decoder": {"scout": str(saved(tmp_path / "scout.nii", 100 + noise, decoder.grid))}})
    with pytest.raises(DecoderError, match="does not lie on it"):
        Hints.of(config, decoder)
