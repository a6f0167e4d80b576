"""Recorded runs scored by all maps of a folder: the command on files, parts of runs, and what is said of the scores."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from rtevo.decode import Decoder, Score
from rtevo.decode.__main__ import main
from rtevo.decode.elsewhere import carry_folder
from rtevo.decode.events import Event, predicted
from rtevo.decode.folder import maps_in, write_decoder
from rtevo.decode.recorded import events_of, open_with
from rtevo.decode.runs import open_run
from rtevo.decode.score import spearman_brown
from rtevo.decode.scoring import Replayed, replay, table_of
from rtevo.decode.separate import Projection
from rtevo.errors import DecoderError
from rtevo.realign.series import Run
from rtevo.records import Grid

pytestmark = pytest.mark.xdist_group("scoring")  # one study for all

TR_S, SHAPE, COUNT = 2.0, (20, 22, 14), 100


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a head-like object with blocks of three kinds, two of each, and its events."""
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    head = ndimage.gaussian_filter(((grid**2 * np.array([1.4, 1.3, 1.6])[:, None, None, None]).sum(axis=0) < 0.8).astype(float), 0.7)
    texture = head * (1000 + 300 * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1.5) / 0.1)
    events = [Event(8.0 + 30 * k + 2 * j, 2.0, kind, {}) for k, kind in enumerate("abcbca") for j in range(5)]
    times = (np.arange(COUNT) + 0.5) * TR_S
    data = np.repeat(texture[..., None], COUNT, axis=3) + 15 * rng.standard_normal((*SHAPE, COUNT)) * head[..., None]
    for kind in "abc":
        shape = head * ndimage.gaussian_filter(rng.standard_normal(SHAPE), 1) * 60
        data += shape[..., None] * predicted(times, events, [1.0 if event.trial_type == kind else np.nan for event in events])
    affine = np.diag([3.0, 3.0, 3.5, 1.0])
    affine[:3, 3] = (-30, -35, -25)
    image = nib.Nifti1Image(np.maximum(data, 0).astype(np.int16), affine)
    image.header.set_zooms((3.0, 3.0, 3.5, TR_S))
    image.header.set_xyzt_units("mm", "sec")
    image.to_filename(folder / "run.nii.gz")
    rows = "".join(f"{event.onset_s}\t{event.duration_s}\t{event.trial_type}\n" for event in events)
    (folder / "run.tsv").write_text("onset\tduration\ttrial_type\n" + rows)
    nib.Nifti1Image((head > 0.5).astype(np.uint8), affine).to_filename(folder / "head.nii.gz")
    words = ["fit", folder / "run.nii.gz", "--events", folder / "run.tsv", "--out", folder / "maps", "--mask", folder / "head.nii.gz"]
    words += ["--voxels", "200", "0", "--permutations", "3"]
    assert main([str(word) for word in words]) == 0
    return folder


def test_one_fit_writes_one_folder_with_a_map_for_each_kind(study: Path) -> None:
    folder = study / "maps"
    assert maps_in(folder) == ["a", "b", "c"]
    stored = json.loads((folder / "decoder.json").read_text())
    assert "name" not in stored
    assert stored["settings"]["method"] == "select"
    assert stored["settings"]["performance"]["accuracy"] > 0.6
    for name in "abc":
        decoder = Decoder.load(folder, name)
        assert decoder.settings["unit"] == stored["maps"][name]["unit"] > 0
        assert decoder.settings["category"] == name
        assert (folder / f"{name}.png").stat().st_size > 10_000
    with pytest.raises(DecoderError, match="name of one of several, found a, b, c"):
        Decoder.load(folder)


def test_all_maps_are_scored_at_once_and_the_table_says_how_well(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = study / "scores.tsv"
    words = ["score", study / "maps", study / "run.nii.gz", "--events", study / "run.tsv", "--out", out]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "3-way accuracy: images " in said
    assert "all, pooled" in said
    lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert lines[0] == ["onset", "duration", "trial_type", "a", "a_se", "b", "b_se", "c", "c_se", "volumes_used"]
    scores = np.array([[float(line[k]) for k in (3, 5, 7)] for line in lines[1:]])
    own = np.array(["abc".index(line[2]) for line in lines[1:]])
    assert (scores.argmax(axis=1) == own).mean() > 0.9
    run = open_with(study / "run.nii.gz", type("Options", (), {"series": None, "tr": None}))  # type: ignore[arg-type]
    alone = replay(Decoder.load(study / "maps", "b"), run, events_of(study / "run.tsv", run), "deconvolve")
    assert [f"{score.score:.6g}" for score in alone] == [line[5] for line in lines[1:]]  # a map's scores do not depend on others


def test_one_map_of_a_folder_is_scored_as_before(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", study / "maps", study / "run.nii.gz", "--events", study / "run.tsv", "--name", "a", "--no-halves"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("onset\tduration\ttrial_type\tscore\tscore_se\tvolumes_used\n")
    assert "image AUC" in said.err


def test_a_carried_folder_keeps_the_units_of_its_maps(study: Path, tmp_path: Path) -> None:
    run = open_with(study / "run.nii.gz", type("Options", (), {"series": None, "tr": None}))  # type: ignore[arg-type]
    carry_folder(study / "maps", None, run, tmp_path / "today", np.eye(4))
    for name in "abc":
        assert Decoder.load(tmp_path / "today", name).settings["unit"] == Decoder.load(study / "maps", name).settings["unit"]


def part(begins: int) -> Run:
    """A run of 100 volumes of which the first are not there."""
    grid = Grid((2, 2, 2), np.eye(4))
    return Run(grid, TR_S, 100, lambda index: None if index < begins else np.zeros((2, 2, 2), np.float32))


@pytest.mark.parametrize(("onsets", "shift_s"), [((4.0, 30.0), 120.0), ((130.0, 160.0), 0.0)])
def test_onsets_of_a_part_count_from_its_first_volume_or_the_runs(
    onsets: tuple[float, ...], shift_s: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\n" + "".join(f"{onset}\t1\n" for onset in onsets))
    assert [event.onset_s for event in events_of(path, part(60))] == [onset + shift_s for onset in onsets]
    assert "the run begins with volume 60" in capsys.readouterr().err
    assert [event.onset_s for event in events_of(path, part(0))] == list(onsets)
    assert capsys.readouterr().err == ""


def test_what_onsets_count_from_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\n4\t1\n130\t1\n")
    assert [event.onset_s for event in events_of(path, part(60), 60)] == [4.0, 130.0]
    path.write_text("onset\tduration\n4\t1\n")
    assert [event.onset_s for event in events_of(path, part(60), 0)] == [124.0]


def test_the_table_by_hand() -> None:
    events = [Event(10.0 * k, 1.0, kind, {}) for k, kind in enumerate("abab")]
    scores = {"a": (2.0, -1.0, 1.0, 0.0), "b": (-2.0, 1.0, 1.5, 3.0)}
    grid, cube = Grid((2, 2, 2), np.eye(4)), np.arange(8.0).reshape(2, 2, 2)
    replayed = [
        Replayed(
            Decoder(grid, cube, cube >= 0, cube, name, {"category": name}),
            [Score((0, k), 0.0, value, 1.0, 3, 5) for k, value in enumerate(values)], 0.5, float("nan"),
        )
        for name, values in scores.items()
    ]  # fmt: skip
    lines = table_of(replayed, events).splitlines()
    assert lines[1].split() == ["a", "1.000", "1.000", "0.500", "n/a"]
    assert lines[2].split() == ["b", "0.750", "0.750", "0.500", "n/a"]
    assert lines[4] == "2-way accuracy: images 0.750, blocks 0.750 (chance 0.500; 4 images, 4 blocks)"


def test_a_unit_divides_the_projection_and_must_be_a_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights, sd = rng.standard_normal(20), rng.uniform(1, 2, 20)
    plain, scaled = Projection(weights, sd), Projection(weights, sd, 2.0)
    for volume in rng.standard_normal((3, 20)).astype(np.float32):
        assert scaled(volume) == plain(volume) / 2
    cube = rng.standard_normal((3, 3, 3))
    write_decoder(tmp_path / "bad", "a", cube, np.ones((3, 3, 3)), cube, np.eye(4), {"unit": 0})
    from rtevo.decode import Scorer

    with pytest.raises(DecoderError, match="unit: expected a number > 0"):
        Scorer(Decoder.load(tmp_path / "bad"), TR_S)


def test_halves_are_stepped_up() -> None:
    assert spearman_brown(0.5) == pytest.approx(2 / 3)
    assert spearman_brown(-0.2) == -0.2


def test_an_objective_is_scored_beside_its_maps(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores.tsv"
    words = ["score", study / "maps", study / "run.nii.gz", "--events", study / "run.tsv", "--no-halves", "--out", out]
    assert main([*map(str, words), "--objective", "a - mean(b, c)"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[1:5]] == ["objective", "a", "b", "c"]
    assert float(said.splitlines()[1].split()[1]) > 0.9  # AUC of a against b and c; it was fitted to this run
    assert all(line.split()[3] != "n/a" for line in said.splitlines()[1:5])  # reliability
    assert "3-way accuracy" in said  # of the maps; the objective is none
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert rows[0][3:5] == ["objective", "objective_se"]
    numbers = np.array([row[3:11] for row in rows[1:]], float)
    expected = numbers[:, 2] - 0.5 * (numbers[:, 4] + numbers[:, 6])
    assert np.corrcoef(numbers[:, 0], expected)[0, 1] > 0.98  # each filter shrinks by itself
    assert main([*map(str, words), "--objective", "a - d"]) == 2
    assert "unknown map 'd': expected one of a, b, c" in " ".join(capsys.readouterr().err.split())
    assert main([*map(str, words), "--objective", "a", "--name", "a"]) == 2
    assert "--name: expected none with --objective" in capsys.readouterr().err


def test_what_repeats_is_asked_of_two_runs(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", study / "run.nii.gz", "--events", study / "run.tsv", "--out", tmp_path / "one", "--reliable", "0.5"]
    assert main([*map(str, words)]) == 2
    assert "--reliable: expected two or more runs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_decoder_says_that_its_voxels_repeat(study: Path, tmp_path: Path) -> None:
    run, events = str(study / "run.nii.gz"), str(study / "run.tsv")
    rest = ["--mask", str(study / "head.nii.gz"), "--voxels", "200", "--permutations", "0", "--reliable", "0.5"]
    assert main(["fit", run, run, "--events", events, events, "--out", str(tmp_path / "two"), *rest]) == 0
    selection = json.loads((tmp_path / "two" / "decoder.json").read_text())["settings"]["selection"]
    assert selection["reliable"] == 0.5
    assert 2 <= selection["voxels"] <= 200


# --- maps from elsewhere ---------------------------------------------------------------------------------------------------------------


def test_an_imported_map_takes_its_noise_and_unit_from_a_run(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Decoder.load(study / "maps", "a")
    common = ["--reference", study / "maps" / "ref_img.nii.gz", "--mask", study / "head.nii.gz", "--name", "a"]
    words = ["import", study / "maps" / "a_img.nii.gz", *common, "--out", tmp_path / "a", "--noise", study / "run.nii.gz"]
    assert main([*map(str, words)]) == 0
    said = capsys.readouterr().out
    assert f"from {COUNT} volumes of {study / 'run.nii.gz'}" in said
    found = Decoder.load(tmp_path / "a")
    assert found.noise_sd is not None
    assert made.noise_sd is not None
    counted = made.noise_sd > 0
    np.testing.assert_allclose(found.noise_sd[counted], made.noise_sd[counted], rtol=0.02)  # the run that the map was fitted to
    assert found.settings["unit"] == pytest.approx(_projected_sd(study, found), rel=0.02)
    out = tmp_path / "scores.tsv"
    score = ["score", tmp_path / "a", study / "run.nii.gz", "--events", study / "run.tsv", "--no-halves", "--out", out]
    assert main([*map(str, score)]) == 0
    first = out.read_text().splitlines()[1].split("\t")
    assert first[3] != "n/a"


def _projected_sd(study: Path, decoder: Decoder) -> float:
    """Spread of the map's projection over the run without drift, in units of a voxel's noise."""
    assert decoder.noise_sd is not None
    project = Projection(decoder.weights[decoder.mask].astype(float), decoder.noise_sd[decoder.mask].astype(float))
    from rtevo.decode.recorded import nuisance_of, series_of, terms_of

    run = open_run(study / "run.nii.gz", None)
    series = series_of(run, decoder.reference, decoder.mask, 4.0)
    fit = nuisance_of(series, run.tr_s)
    project(np.zeros(int(decoder.mask.sum()), np.float32))
    rows = [fit.residual(terms, values) for terms, values in zip(terms_of(series, run.tr_s), series.values, strict=True)]
    return float(np.std([project(row.astype(np.float32)) for row in rows]))
