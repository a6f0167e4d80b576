"""Training: methods against their textbook form, honest performance, and the whole command on a made-up run and a real one."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression, Ridge

from rtevo.config import Config
from rtevo.decode import Decoder, Scorer, pearson
from rtevo.decode.__main__ import _parser, main
from rtevo.decode.events import Event, parse_target, predicted, read_events
from rtevo.decode.hrf import response
from rtevo.decode.nuisance import DRIFT_SD, MOTION_SD
from rtevo.decode.peak import response_window
from rtevo.decode.recorded import aligned, nuisance_of, open_with, series_of, terms_of
from rtevo.decode.scoring import replay
from rtevo.decode.train import METHODS, RIDGE, Examples, fit_weights, measure
from rtevo.errors import DataError
from rtevo.realign import Realigner
from rtevo.records import EventKind, aligned_dtype, placement_dtype, put_volume, score_dtype, volume_dtype
from rtevo.stages.decode import _Decode

pytestmark = pytest.mark.xdist_group("train")  # one study for all

TR_S = 2.0
SHAPE = (22, 24, 16)
DENSE = 1e-6  # relative: the same normal equations solved in another space


def make_events(pattern: str, block_s: float = 8.0, rest_s: float = 10.0) -> list[Event]:
    return [Event(8.0 + k * (block_s + rest_s), block_s, kind, {}) for k, kind in enumerate(pattern)]


def make_examples(pattern: str, effect: float, voxels: int = 300, seed: int = 0) -> tuple[Examples, np.ndarray]:
    """Return volumes with two response patterns in noise, and the true difference."""
    rng = np.random.default_rng(seed)
    events = make_events(pattern)
    times = (np.arange(int((events[-1].onset_s + 26) / TR_S)) + 0.5) * TR_S
    maps = {kind: rng.standard_normal(voxels) for kind in set(pattern)}
    patterns = rng.standard_normal((len(times), voxels))
    for kind, shape in maps.items():
        patterns += effect * np.outer(predicted(times, events, [1.0 if event.trial_type == kind else np.nan for event in events]), shape)
    target = parse_target("a - b", events)
    return Examples(patterns, times, np.zeros(len(times), int), [events], [target]), maps["a"] - maps["b"]


def test_ridge_is_scikit_learns() -> None:
    examples, _ = make_examples("abab", 0.5)
    plus, minus = examples.sides()
    centred = examples.patterns - examples.patterns.mean(axis=0)
    expected = Ridge(alpha=RIDGE * (centred**2).sum() / len(centred), solver="svd").fit(examples.patterns, plus - minus).coef_
    np.testing.assert_allclose(fit_weights(examples), expected, rtol=DENSE, atol=DENSE * np.abs(expected).max())


def test_logistic_in_the_space_of_the_volumes_is_logistic_in_that_of_the_voxels() -> None:
    examples, _ = make_examples("abab", 0.5, voxels=60)
    plus, minus = examples.sides()
    lead = 0.5 * max(plus.max(), minus.max())
    label = np.where((plus > lead) & (plus > 2 * minus), 1, np.where((minus > lead) & (minus > 2 * plus), -1, 0))
    used = examples.patterns[label != 0]
    scale = np.sqrt(((used - used.mean(axis=0)) ** 2).sum() / len(used))
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=5000, tol=1e-8).fit(used / scale, label[label != 0])
    assert np.corrcoef(fit_weights(examples, "logistic"), model.coef_[0])[0, 1] > 0.9999


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_difference_and_performance_tells(method: str) -> None:
    examples, truth = make_examples("abbaabab", 0.4)
    assert np.corrcoef(fit_weights(examples, method), truth)[0, 1] > 0.5  # type: ignore[arg-type]
    found = measure(examples, [method], 30, np.random.default_rng(0))[1]  # type: ignore[list-item]
    assert found.value > 0.9
    assert found.p_value < 0.15
    assert (found.blocks, found.folds, found.permutations) == (8, 4, 30)


def test_nothing_to_find_is_chance() -> None:
    values, p_values = [], []
    for seed in range(12):
        found = measure(make_examples("abbaabab", 0.0, seed=seed)[0], ["ridge"], 20, np.random.default_rng(seed))[1]
        values.append(found.value)
        p_values.append(found.p_value)
    assert 0.3 < np.mean(values) < 0.7
    assert 0.3 < np.mean(p_values) < 0.8


def test_performance_is_not_fooled_by_slow_signals() -> None:
    """A drift tells early from late, not one kind from the other; and a block's own neighbourhood is no evidence."""
    examples, _ = make_examples("abbaabab", 0.0, seed=5)
    rng = np.random.default_rng(1)
    slow = ndimage.gaussian_filter1d(rng.standard_normal((len(examples.times_s), 20)), 3, axis=0) @ rng.standard_normal((20, 300))
    found = measure(replace(examples, patterns=examples.patterns + 5 * slow), ["ridge"], 0, rng)[1]
    assert found.value < 0.85


def test_too_few_blocks_give_no_number() -> None:
    examples, _ = make_examples("abb", 1.0)
    found = measure(examples, ["ridge"], 10, np.random.default_rng(0))[1]
    assert np.isnan(found.value)
    assert "at least two of each side, found 1" in found.note
    assert found.as_dict()["value"] is None


@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_a_run_too_short_to_hold_blocks_out_gives_no_number(method: str) -> None:
    """The neighbourhoods of the blocks that are tested cover the whole run."""
    whole, _ = make_examples("abab", 3.0)
    events = make_events("abab", 4.0, 0.0)
    early = whole.times_s < 24
    targets = [parse_target("a - b", events)]
    examples = Examples(whole.patterns[early], whole.times_s[early], whole.run[early], [events], targets)
    found = measure(examples, [method], 10, np.random.default_rng(0))[1]  # type: ignore[list-item]
    assert np.isnan([found.value, found.p_value]).all()
    assert "4 of 4 blocks could not be held out" in found.note


def test_a_numeric_target() -> None:
    rng = np.random.default_rng(0)
    events = [Event(8.0 + 12 * k, 3.0, "", {"fear": f"{v:.3f}"}) for k, v in enumerate(rng.uniform(0, 5, 20))]
    times = (np.arange(130) + 0.5) * TR_S
    target = parse_target("fear", events)
    truth = rng.standard_normal(200)
    patterns = rng.standard_normal((130, 200)) + 0.3 * np.outer(predicted(times, events, target.coefficients), truth)
    examples = Examples(patterns, times, np.zeros(130, int), [events], [target])
    assert np.corrcoef(fit_weights(examples), truth)[0, 1] > 0.6
    assert measure(examples, ["ridge"], 0, rng)[1].value > 0.7
    with pytest.raises(DataError, match="'lda': expected a contrast, got a numeric target"):
        fit_weights(examples, "lda")


def test_events_that_no_volume_shows_are_refused() -> None:
    examples, _ = make_examples("abab", 0.5)
    far = [Event(event.onset_s + 1e4, 1.0, event.trial_type, {}) for event in examples.events[0]]
    moved = replace(examples, events=[far])
    for method in METHODS:
        with pytest.raises(DataError, match="training: expected volumes"):
            fit_weights(moved, method)


# The command, on files


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a head-like object with two kinds of block, one of them with a moved head, and their events."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    head = ndimage.gaussian_filter(((grid**2 * np.array([1.4, 1.3, 1.6])[:, None, None, None]).sum(axis=0) < 0.8).astype(float), 0.7)
    texture = head * (1000 + 300 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.5) / 0.1)
    maps = [head * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1) * 90 for _ in range(2)]
    affine = np.diag([3.0, 3.0, 3.5, 1.0])
    affine[:3, 3] = (-30, -35, -25)
    for run, pattern in enumerate(("abbaab", "baabba")):
        events = make_events(pattern)
        times = (np.arange(65) + 0.5) * TR_S
        data = np.repeat(texture[..., None], 65, axis=3) + 15 * rng.standard_normal((*SHAPE, 65)) * head[..., None]
        for kind, shape in zip("ab", maps, strict=True):
            data += shape[..., None] * predicted(times, events, [1.0 if event.trial_type == kind else np.nan for event in events])
        image = nib.Nifti1Image(np.maximum(data, 0).astype(np.int16), affine)
        image.header.set_zooms((3.0, 3.0, 3.5, TR_S))
        image.header.set_xyzt_units("mm", "sec")
        image.to_filename(folder / f"run{run}.nii.gz")
        rows = "".join(f"{event.onset_s}\t{event.duration_s}\t{event.trial_type}\n" for event in events)
        (folder / f"run{run}.tsv").write_text("onset\tduration\ttrial_type\n" + rows)
    nib.Nifti1Image((head > 0.5).astype(np.uint8), affine).to_filename(folder / "head.nii.gz")
    nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine).to_filename(folder / "nothing.nii.gz")
    return folder


@pytest.fixture(scope="module")
def fitted(study: Path) -> Path:
    command = ["fit", study / "run0.nii.gz", "--events", study / "run0.tsv", "--target", "a - b", "--out", study / "decoder"]
    command += ["--permutations", "5"]
    assert main([str(word) for word in command]) == 0
    return study / "decoder"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("method", ["peak", "deconvolve"])
def test_a_decoder_tells_the_blocks_of_another_run(study: Path, fitted: Path, method: str) -> None:
    out = study / f"{method}.tsv"
    command = ["score", fitted, study / "run1.nii.gz", "--events", study / "run1.tsv", "--method", method, "--out", out]
    assert main([str(word) for word in command]) == 0
    rows = table(out)
    scores = {kind: [float(row["score"]) for row in rows if row["trial_type"] == kind] for kind in "ab"}
    assert min(scores["a"]) > max(scores["b"])
    assert [row["score_se"] == "n/a" for row in rows] == [method == "peak"] * 6


def test_what_a_fitted_decoder_says_of_itself(fitted: Path) -> None:
    decoder = Decoder.load(fitted)
    assert decoder.name == "a-b"
    assert decoder.noise_sd is not None
    assert decoder.settings["fwhm_mm"] == 4.0
    assert decoder.settings["performance"]["blocks"] == 6
    assert 20 < decoder.settings["median_tsnr"] < 500
    stored = json.loads((fitted / "decoder.json").read_text())
    assert len(stored["settings"]["provenance"]["sha256"]) == 2
    assert (fitted / "a-b.png").stat().st_size > 10_000


def test_fitting_and_scoring_use_the_same_numbers_to_the_last_bit(study: Path, fitted: Path) -> None:
    decoder = Decoder.load(fitted)
    options = _parser().parse_args(["score", str(fitted), str(study / "run0.nii.gz"), "--events", str(study / "run0.tsv")])
    run = open_with(options.run, options)
    series = series_of(run, decoder.reference, decoder.mask, 4.0)
    fit = nuisance_of(series, run.tr_s)
    last = Event(run.count * run.tr_s - 10.0, 3.0, "a", {})  # its window ends with the run, so it is scored on all volumes
    window = response_window(last.onset_s, run.tr_s)
    assert window[-1] == run.count - 1
    terms = terms_of(series, run.tr_s)[window[0] :]
    pattern = fit.residual(terms.mean(axis=0), series.values[window[0] :].mean(axis=0, dtype=np.float64))
    expected = pearson(pattern / fit.sd(), decoder.weights[decoder.mask].astype(float))
    scorer = Scorer(decoder, run.tr_s, method="peak", drift_sd=DRIFT_SD, motion_sd=MOTION_SD)
    scorer.add_onset((0, 0), last.onset_s)
    for index, volume, motion in aligned(run, decoder.reference, decoder.mask):
        scorer.add_volume(index, volume, motion)
    assert scorer.ready()[0].score == expected


def test_replaying_is_what_a_session_does(study: Path, fitted: Path) -> None:
    decoder = Decoder.load(fitted)
    events = read_events(study / "run1.tsv")
    options = _parser().parse_args(["score", str(fitted), str(study / "run1.nii.gz"), "--events", str(study / "run1.tsv")])
    run = open_with(options.run, options)
    scorer = Scorer(decoder, run.tr_s, method="deconvolve", fwhm_mm=4.0, duration_s=8.0)
    for k, event in enumerate(events):
        scorer.add_onset((0, k), event.onset_s)  # all known beforehand: the same
    with Realigner(decoder.reference, decoder.grid.affine) as realigner:
        for index in range(run.count):
            volume = run.volume(index)
            assert volume is not None
            motion, aligned = realigner.align(volume)
            scorer.add_volume(index, aligned, motion.params)
    last = {score.key: score for score in scorer.ready(final=True)}
    assert [last[0, k] for k in range(len(events))] == replay(decoder, run, events, "deconvolve")


class Collected:
    """Stands in for a ring that is written: keeps what was."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype, self.slots = dtype, []

    @contextmanager
    def reserve(self, timeout_s: float) -> Iterator[np.ndarray]:
        slot = np.zeros((), self.dtype)
        yield slot
        self.slots.append(slot)


def test_a_session_gives_the_scores_of_the_command_to_the_last_bit(study: Path, fitted: Path, tmp_path: Path) -> None:
    """The stage, fed the volumes and events of the run that the decoder was fitted on, against ``score`` on that run."""
    decoder, events = Decoder.load(fitted), read_events(study / "run0.tsv")
    options = _parser().parse_args(["score", str(fitted), str(study / "run0.nii.gz"), "--events", str(study / "run0.tsv")])
    run = open_with(options.run, options)
    rings = {"aligned": Collected(aligned_dtype()), "scores": Collected(score_dtype()), "placements": Collected(placement_dtype())}
    config = replace(Config(), presentation=replace(Config().presentation, image_s=8.0))
    plan = SimpleNamespace(
        out=tmp_path, decoder=fitted, decoder_name=None, tr_s=run.tr_s, part=0, first_volume=0, rebaseline=False, attended=False
    )
    words = {"placed": 0}
    clock = SimpleNamespace(get=words.get, set=words.__setitem__)
    log = logging.getLogger("test")
    stage = _Decode(SimpleNamespace(plan=plan, config=config, writer=rings.__getitem__, log=log, clock=clock))  # type: ignore[arg-type]
    stage.event({"kind": EventKind.TRIGGER, "t_ns": 5_000_000_000})
    shown = 0
    for index in range(run.count):
        while shown < len(events) and events[shown].onset_s < (index + 1) * run.tr_s:
            t_ns = 5_000_000_000 + round(events[shown].onset_s * 1e9)
            stage.event({"kind": EventKind.ONSET, "t_ns": t_ns, "generation": 0, "candidate": shown})
            shown += 1
        slot = np.zeros((), volume_dtype(math.prod(run.grid.shape)))
        slot["index"], slot["flags"] = index, 0
        put_volume(slot, run.volume(index), run.grid)
        stage.volume(slot)
    assert words["placed"] == 1
    stage.publish(final=True)
    last = {(int(slot["generation"]), int(slot["candidate"])): slot for slot in rings["scores"].slots}
    for k, score in enumerate(replay(decoder, run, events, "deconvolve")):
        slot = last[0, k]
        assert (slot["score"], slot["score_se"], slot["volumes_used"]) == (score.score, score.score_se, score.volumes_used)
    series = series_of(run, decoder.reference, decoder.mask, 4.0)
    motion = np.array([slot["motion"] for slot in rings["aligned"].slots]) * ([1.0] * 3 + [50.0] * 3)
    np.testing.assert_array_equal(motion, series.motion_mm)
    assert 20 < rings["aligned"].slots[-1]["tsnr"] < 500
    assert all(slot["dvars_percent"] > 0 for slot in rings["aligned"].slots[1:])
    assert rings["scores"].slots[-1]["reliability"] > 0.5


def test_the_best_method_is_chosen_by_nested_cross_validation(study: Path) -> None:
    command = ["fit", study / "run0.nii.gz", study / "run1.nii.gz", "--events", study / "run0.tsv", study / "run1.tsv"]
    command += ["--target", "a", "--out", study / "both", "--method", "best", "--permutations", "0", "--mask", study / "head.nii.gz"]
    assert main([str(word) for word in command]) == 0
    settings = Decoder.load(study / "both").settings
    assert settings["performance"]["value"] > 0.9
    assert settings["performance"]["note"] == "the choice among 4 methods is nested in it"
    assert len(settings["performance"]["decisions"]) == settings["performance"]["blocks"]
    assert np.isfinite(settings["intercept"])
    assert settings["method"] in METHODS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--target": "c - b"}, "found no 'c' (kinds a, b"),
        ({"--target": "a + b"}, "events of another kind to contrast with"),
        ({"--roi": "nothing.nii.gz"}, "expected a mask inside the brain, found none of its 0 voxels"),
        ({"--mask": "run0.tsv"}, "expected a NIfTI file"),
        ({"--events": "none.tsv"}, "No such file"),
        ({"run": "none.nii.gz"}, "none.nii.gz"),
        ({"--tr": "0.2"}, "onsets after its end: check that the file is this run's and that the repetition time is right"),
    ],
)
def test_bad_input_is_one_clear_message(study: Path, change: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"--events": "run0.tsv", "--target": "a - b", "--out": "bad", **change}
    run = options.pop("run", "run0.nii.gz")
    words = ["fit", str(study / run)]
    for name, value in options.items():
        words += [name, value if name in ("--target", "--tr") else str(study / value)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (study / "bad").exists()


def test_a_run_full_of_holes_is_refused(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = nib.load(study / "run0.nii.gz")
    data = image.get_fdata(dtype=np.float32)
    head = np.argwhere(nib.load(study / "head.nii.gz").get_fdata() > 0)
    data[(*head[len(head) // 2], slice(3, None))] = np.nan
    holes = nib.Nifti1Image(data, image.affine)
    holes.header.set_zooms(image.header.get_zooms())
    holes.to_filename(study / "holes.nii.gz")
    command = ["fit", study / "holes.nii.gz", "--events", study / "run0.tsv", "--target", "a - b", "--mask", study / "head.nii.gz"]
    assert main([str(word) for word in (*command, "--out", study / "holes")]) == 2
    expected = "expected at least 10 volumes that can be used, found 3 of 65; 62 have NaN or infinite values in the mask"
    assert expected in capsys.readouterr().err
    assert not (study / "holes").exists()


def test_a_run_without_a_head_is_refused(study: Path, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nib.Nifti1Image(np.ones((5, 5, 5, 12), np.int16), np.diag([3.0, 3, 3, 1])).to_filename(tmp_path / "other.nii.gz")
    assert main(["score", str(fitted), str(tmp_path / "other.nii.gz"), "--tr", "2", "--events", str(study / "run0.tsv")]) == 2
    said = capsys.readouterr().err
    assert "other.nii.gz: expected a run in which the decoder's head can be found" in said
    assert "Realigner reference: nothing to align to" in said


@pytest.mark.slow
def test_a_real_localizer_run(scanner_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = scanner_data("philips-slices")
    events = str(folder / "events.tsv")
    command = [
        "fit",
        str(folder / "dicom"),
        "--events",
        events,
        "--target",
        "face",
        "--fwhm",
        "4",
        "--voxels",
        "1000",
        "--out",
        str(tmp_path / "decoder"),
    ]
    assert main(command) == 0
    assert "parts of blocks were held out" in capsys.readouterr().err  # said aloud, and the number is marked as weak
    assert Decoder.load(tmp_path / "decoder").settings["performance"]["weak"] is True
    assert 80 < Decoder.load(tmp_path / "decoder").settings["median_tsnr"] < 250
    out = tmp_path / "scores.tsv"
    assert main(["score", str(tmp_path / "decoder"), str(folder / "dicom"), "--events", events, "--method", "peak", "--out", str(out)]) == 0
    rows = [row for row in table(out) if row["score"] != "n/a"]
    faces = [float(row["score"]) for row in rows if row["trial_type"] == "face"]
    others = [float(row["score"]) for row in rows if row["trial_type"] != "face"]
    assert np.median(faces) > np.percentile(others, 90)  # the training run itself: this only says that the two commands fit together


def test_the_response_used_for_training_is_the_scorers() -> None:
    event = Event(3.0, 2.0, "a", {})
    times = np.arange(0, 40, 0.5)
    np.testing.assert_array_equal(predicted(times, [event], [1.0]), response(times - 3.0, 2.0))
