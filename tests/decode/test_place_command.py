"""The command line across days: place, score and fit on any grid, maps from other spaces. The head is the simulated one, sampled twice."""

from __future__ import annotations

import csv
import datetime
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rtevo.decode import Decoder, write_decoder
from rtevo.decode.__main__ import _days, _parser, main
from rtevo.decode.convert import place_map
from rtevo.decode.elsewhere import for_run, steady
from rtevo.decode.events import Event, parse_target, predicted
from rtevo.decode.recorded import open_with
from rtevo.decode.sampling import sample
from rtevo.decode.train import Examples, measure_days
from rtevo.errors import GeometryError
from rtevo.kernels.rigid import matrix_from_params
from rtevo.realign.series import Run
from rtevo.records import Grid
from rtevo.simulate import scan_grid
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.head import Head

pytestmark = pytest.mark.xdist_group("place-command")  # one study for all

TR_S = 2.0
KEYS = {"matrix", "correlation", "overlap", "weight_kept", "expected_error_mm", "verdict"}
MOVED = matrix_from_params([9.0, -7.0, 5.0, 0.15, -0.08, 0.2])  # decoder's world to today's
NEAR_MM = 1.0  # of the brain's corners: a placement, which has tests of its own
TRANSFORM_MM = 1e-6


def today_grid() -> Grid:
    """Return coronal slices of other voxels, turned."""
    affine = np.eye(4)
    turn = matrix_from_params([0, 0, 0, *np.deg2rad([8.0, -5.0, 12.0])])[:3, :3]
    affine[:3, :3] = turn[:, [0, 2, 1]] @ np.diag([-4.6, 4.2, 5.0])
    shape = (44, 36, 46)
    affine[:3, 3] = (MOVED @ [0, -14, 6, 1])[:3] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


HOME, TODAY = scan_grid((44, 50, 28), (4.6, 4.6, 4.6)), today_grid()
FINE = Grid((72, 80, 56), np.array([[-3.0, 0, 0, 108], [0, 3, 0, -134], [0, 0, 3, -80], [0, 0, 0, 1]]))


class Person:
    """A head and two response maps, known on a fine grid."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        head = Head.build(FINE, rng)
        self.signal = gaussian_filter(head.signal, 0.5)
        self.maps = [head.brain * gaussian_filter(rng.standard_normal(FINE.shape), 2.0) for _ in "ab"]
        self.maps = [10 * each / each.std() for each in self.maps]

    def on(self, grid: Grid, matrix: np.ndarray, what: np.ndarray) -> np.ndarray:
        return sample(what, np.linalg.inv(FINE.affine) @ np.linalg.inv(matrix) @ grid.affine, grid.shape)


@pytest.fixture(scope="module")
def person() -> Person:
    return Person(0)


def save(path: Path, data: np.ndarray, grid: Grid) -> Path:
    image = nib.Nifti1Image(np.asarray(data, np.float32), grid.affine)
    image.header.set_xyzt_units("mm", "sec")
    if data.ndim == 4:
        image.header.set_zooms((*grid.voxel_size_mm, TR_S))
    image.to_filename(path)
    return path


def record(person: Person, path: Path, grid: Grid, matrix: np.ndarray, pattern: str, seed: int, bright: int = 0) -> Path:
    """Write a run with blocks of two kinds, its events beside it; the first volumes before steady state."""
    events = [Event(8.0 + 16.0 * k, 8.0, kind, {}) for k, kind in enumerate(pattern)]
    times = (np.arange(int((8 + 16 * len(pattern) + 8) / TR_S)) + 0.5) * TR_S
    still, maps = person.on(grid, matrix, person.signal), [person.on(grid, matrix, each) for each in person.maps]
    rng = np.random.default_rng(seed)
    data = np.repeat(still[..., None], len(times), axis=3) + 10 * rng.standard_normal((*grid.shape, len(times))) * (still > 100)[..., None]
    for kind, each in zip("ab", maps, strict=True):
        data += each[..., None] * predicted(times, events, [1.0 if event.trial_type == kind else np.nan for event in events])
    data[..., :bright] *= 1.3
    rows = "".join(f"{event.onset_s}\t{event.duration_s}\t{event.trial_type}\n" for event in events)
    path.with_suffix("").with_suffix(".tsv").write_text("onset\tduration\ttrial_type\n" + rows)
    return save(path, data, grid)


@pytest.fixture(scope="module")
def study(person: Person, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a decoder of two maps, a volume of today, and runs of both days."""
    folder = tmp_path_factory.mktemp("study")
    reference = person.on(HOME, np.eye(4), person.signal)
    maps = [person.on(HOME, np.eye(4), each) for each in person.maps]
    mask = np.abs(maps[0]) + np.abs(maps[1]) > 2
    for name, weights in zip("ba", maps[::-1], strict=True):
        settings = {"fwhm_mm": 5.0, "tr_s": TR_S}
        write_decoder(folder / "decoder", name, reference, mask, weights, HOME.affine, settings, np.full(HOME.shape, 10.0))
    save(folder / "today.nii.gz", person.on(TODAY, MOVED, person.signal), TODAY)
    record(person, folder / "home.nii.gz", HOME, np.eye(4), "abbaab", 1)
    record(person, folder / "today4d.nii.gz", TODAY, MOVED, "baabba", 2, bright=2)
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def apart_mm(found: np.ndarray) -> float:
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-90, 60) for z in (-40, 70)], float).T
    return float(np.linalg.norm(((found - MOVED) @ corners)[:3], axis=0).max())


def test_a_decoder_is_carried_to_a_volume_of_today(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("place", study / "decoder", "--on", study / "today.nii.gz", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith("placement good: correlation ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_img.nii.gz", "b_img.nii.gz", "decoder.json", "mask_img.nii.gz", "noise_sd.nii.gz", "placement.json", "placement.png",
        "ref_img.nii.gz",
    ]  # fmt: skip
    stored = json.loads((tmp_path / "out" / "placement.json").read_text())
    assert stored.keys() >= KEYS
    assert stored["verdict"] == "good"
    assert apart_mm(np.array(stored["matrix"])) < NEAR_MM
    assert (tmp_path / "out" / "placement.png").read_bytes().startswith(b"\x89PNG")
    assert Decoder.load(tmp_path / "out").name == Decoder.load(study / "decoder").name == "a"
    for name in "ab":
        decoder = Decoder.load(tmp_path / "out", name)
        assert decoder.grid.difference(TODAY) == ""
        assert decoder.settings["placed"]["placement"]["verdict"] == "good"
        assert decoder.settings["fwhm_mm"] == 5.0


def test_one_map_by_name_and_again(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["place", study / "decoder", "--on", study / "today4d.nii.gz", "--out", tmp_path / "out", "--name", "b"]
    assert run(*command) == run(*command) == 0
    assert not (tmp_path / "out" / "a_img.nii.gz").exists()
    assert "decoder 'b'" in capsys.readouterr().out
    assert run("place", study / "decoder", "--on", study / "today.nii.gz", "--out", study / "decoder") == 2
    assert "expected a new folder, or one with an earlier placement" in capsys.readouterr().err
    assert Decoder.load(study / "decoder").grid.difference(HOME) == ""


def test_a_transform_that_was_given(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savetxt(tmp_path / "m.txt", MOVED, fmt="%.12f")
    command = ["place", study / "decoder", "--on", study / "today.nii.gz", "--transform"]
    assert run(*command, tmp_path / "m.txt", "--out", tmp_path / "out") == 0
    assert apart_mm(np.array(json.loads((tmp_path / "out" / "placement.json").read_text())["matrix"])) < TRANSFORM_MM
    np.savetxt(tmp_path / "back.txt", np.linalg.inv(MOVED), fmt="%.12f")
    capsys.readouterr()
    assert run(*command, tmp_path / "back.txt", "--out", tmp_path / "out") == 1
    assert "given backwards" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["placement.json", "placement.png"]  # the good one is gone
    assert json.loads((tmp_path / "out" / "placement.json").read_text())["verdict"] == "bad"
    np.savetxt(tmp_path / "large.txt", np.diag([1.3, 1, 1, 1]))
    assert run(*command, tmp_path / "large.txt", "--out", tmp_path / "out") == 2
    assert "a rigid transform is needed" in capsys.readouterr().err


def test_what_is_no_head_is_refused_and_shown(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    noise = (100 + 10 * rng.standard_normal(TODAY.shape)).astype(np.float32)
    save(tmp_path / "noise.nii.gz", noise, TODAY)
    assert run("place", study / "decoder", "--on", tmp_path / "noise.nii.gz", "--out", tmp_path / "out") == 1
    assert "no decoder was written" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["placement.json", "placement.png"]
    with pytest.raises(GeometryError, match="expected a run in which the decoder's head can be found: placement bad"):
        for_run(Decoder.load(study / "decoder", "a"), Run(TODAY, TR_S, 1, lambda _: noise))


def test_the_decoders_own_grid_and_its_voxels_in_another_order(person: Person, study: Path, tmp_path: Path) -> None:
    own = Decoder.load(study / "decoder", "b")
    again = save(tmp_path / "again.nii.gz", person.on(HOME, np.eye(4), person.signal), HOME)
    assert run("place", study / "decoder", "--on", again, "--name", "b", "--out", tmp_path / "same") == 0
    flipped = HOME.affine.copy()
    flipped[:3, 3] += (HOME.shape[0] - 1) * flipped[:3, 0]
    flipped[:3, 0] *= -1
    save(tmp_path / "flipped.nii.gz", person.on(HOME, np.eye(4), person.signal)[::-1], Grid(HOME.shape, flipped))
    assert run("place", study / "decoder", "--on", tmp_path / "flipped.nii.gz", "--name", "b", "--out", tmp_path / "flip") == 0
    for folder, step in (("same", 1), ("flip", -1)):
        found = Decoder.load(tmp_path / folder)
        for one in ("reference", "mask", "weights", "noise_sd"):
            np.testing.assert_array_equal(getattr(found, one)[::step], getattr(own, one))


def table(path: Path) -> dict[str, list[float]]:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return {kind: [float(row["score"]) for row in rows if row["trial_type"] == kind] for kind in "ab"}


def test_a_run_of_any_grid_is_scored(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = ["--events", study / "today4d.tsv", "--name", "a"]
    assert run("score", study / "decoder", study / "today4d.nii.gz", *events, "--out", tmp_path / "any.tsv") == 0
    assert "placement good" in capsys.readouterr().err
    scores = table(tmp_path / "any.tsv")
    assert min(scores["a"]) > max(scores["b"])
    assert run("place", study / "decoder", "--on", study / "today4d.nii.gz", "--name", "a", "--out", tmp_path / "placed") == 0
    assert run("score", tmp_path / "placed", study / "today4d.nii.gz", *events, "--out", tmp_path / "placed.tsv") == 0
    assert (tmp_path / "placed.tsv").read_bytes() == (tmp_path / "any.tsv").read_bytes()  # the folder is what score makes by itself


def test_runs_without_a_head_are_refused_by_name(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "dark.nii.gz", np.zeros((*TODAY.shape, 8)), TODAY)
    save(tmp_path / "home.nii.gz", np.repeat(Decoder.load(study / "decoder", "a").reference[..., None], 8, axis=3), HOME)
    (tmp_path / "e.tsv").write_text("onset\tduration\ttrial_type\n1\t4\ta\n9\t4\tb\n")
    assert run("score", study / "decoder", tmp_path / "dark.nii.gz", "--name", "a", "--events", tmp_path / "e.tsv") == 2
    assert "dark.nii.gz: expected a run in which the decoder's head can be found" in capsys.readouterr().err
    both = ["--events", tmp_path / "e.tsv", tmp_path / "e.tsv", "--target", "a - b", "--out", tmp_path / "out"]
    assert run("fit", tmp_path / "home.nii.gz", tmp_path / "dark.nii.gz", *both) == 2
    assert "dark.nii.gz: expected a run of the same head" in capsys.readouterr().err


@pytest.mark.slow
def test_fit_over_two_days(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ["fit", study / "home.nii.gz", study / "today4d.nii.gz", "--events", study / "home.tsv", study / "today4d.tsv"]
    assert run(*runs, "--target", "a - b", "--permutations", 9, "--out", tmp_path / "both") == 0
    said = capsys.readouterr()
    assert "held-out performance: " in said.out
    assert "held-out days: " in said.out
    assert "today4d.nii.gz: placement good" in said.err
    decoder = Decoder.load(tmp_path / "both")
    assert decoder.grid.difference(HOME) == ""
    performance = decoder.settings["performance"]
    assert performance["held_out_days"]["value"] > 0.9
    assert performance["held_out_days"]["days"] == ["grid 1", "grid 2"]
    assert performance["value"] > 0.9
    assert list(decoder.settings["placements"]) == [str(study / "today4d.nii.gz")]
    assert run(*runs, "--target", "a - b", "--day", "mon", "--out", tmp_path / "no") == 2
    assert "--day: expected a label for each run, got 1 for 2 runs" in capsys.readouterr().err


def test_held_out_days_are_decided_by_the_others() -> None:
    """A map that holds on every day is found on each; one that turns round from day to day is worse than chance."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(200)
    for steady_map in (True, False):
        runs, events, targets = [], [], []
        for day in range(2):
            mine = [Event(8.0 + 20 * k, 8.0, kind, {}) for k, kind in enumerate("abbaab")]
            times = (np.arange(70) + 0.5) * TR_S
            target = parse_target("a - b", mine)
            sign = 1.0 if steady_map or day == 0 else -1.0
            runs.append(rng.standard_normal((70, 200)) + sign * 0.4 * np.outer(predicted(times, mine, target.coefficients), truth))
            events.append(mine)
            targets.append(target)
        examples = Examples(np.concatenate(runs), np.tile(times, 2), np.repeat([0, 1], 70), events, targets)
        found = measure_days(examples, ["mon", "tue"], ["ridge"], 19, np.random.default_rng(1))
        assert (found.folds, found.blocks, found.permutations) == (2, 12, 19)
        assert found.value > 0.9 if steady_map else found.value < 0.1
        assert found.p_value < 0.1 if steady_map else found.p_value > 0.8


def test_volumes_before_steady_state_are_no_reference(person: Person) -> None:
    still = person.on(HOME, np.eye(4), person.signal)
    factors = [1.4, 1.1, *[1.0] * 8]
    reference, volumes = steady(Run(HOME, TR_S, len(factors) + 1, lambda k: None if k == 4 else still * ([*factors, 1.0][k])))
    assert len(volumes) == 8
    np.testing.assert_allclose(reference[still > 100], still[still > 100], rtol=1e-3)
    alone, only = steady(Run(HOME, TR_S, 1, lambda _: still))
    np.testing.assert_array_equal(alone, still)
    assert len(only) == 1


def test_a_map_in_another_space_is_imported(person: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The template's space is scaled and turned; its map arrives where it was made from."""
    to_template = matrix_from_params([3.0, -5.0, 8.0, 0.1, 0.05, -0.1]) @ np.diag([1.1, 1.15, 1.08, 1])
    template = Grid((80, 92, 76), np.array([[-2.5, 0, 0, 100], [0, 2.5, 0, -140], [0, 0, 2.5, -85], [0, 0, 0, 1]]))
    save(tmp_path / "map.nii.gz", person.on(template, to_template, person.maps[0]), template)
    reference = save(tmp_path / "ref.nii.gz", person.on(HOME, np.eye(4), person.signal), HOME)
    home = person.on(HOME, np.eye(4), person.maps[0])
    mask = save(tmp_path / "mask.nii.gz", np.abs(home) > 1, HOME)
    half = matrix_from_params([1.5, -2.5, 4.0, 0.05, 0.02, -0.05])
    np.savetxt(tmp_path / "first.txt", half)
    np.savetxt(tmp_path / "second.txt", to_template @ np.linalg.inv(half))
    command = ["import", tmp_path / "map.nii.gz", "--reference", reference, "--mask", mask, "--out", tmp_path / "out", "--transform"]
    assert run(*command, tmp_path / "first.txt", tmp_path / "second.txt") == 0
    decoder = Decoder.load(tmp_path / "out")
    assert np.corrcoef(decoder.weights[decoder.mask], home[decoder.mask])[0, 1] > 0.97
    assert decoder.settings["on_head"] > 0.9
    assert (tmp_path / "out" / "placement.png").read_bytes().startswith(b"\x89PNG")
    np.savetxt(tmp_path / "away.txt", matrix_from_params([0, 0, 90.0, 0, 0, 0]))
    assert run(*command[:-3], "--out", tmp_path / "away", "--transform", tmp_path / "away.txt") == 2
    assert "expected at least 50% of the map on the head" in capsys.readouterr().err
    assert not (tmp_path / "away" / "ref_img.nii.gz").exists()
    values = np.zeros(template.shape, np.float32)
    assert place_map(values, template, np.zeros(HOME.shape, np.float32), HOME, [tmp_path / "first.txt"])[1] == 0.0


def test_maps_and_masks_in_another_order_of_axes_are_taken(person: Person, tmp_path: Path) -> None:
    home = person.on(HOME, np.eye(4), person.maps[0])
    reference = save(tmp_path / "ref.nii.gz", person.on(HOME, np.eye(4), person.signal), HOME)
    turned = np.zeros((4, 4))
    turned[:, 0], turned[:, 1], turned[:, 2], turned[:, 3] = (HOME.affine[:, k] for k in (1, 0, 2, 3))
    other = Grid((HOME.shape[1], HOME.shape[0], HOME.shape[2]), turned)
    mask = save(tmp_path / "mask.nii.gz", (np.abs(home) > 1).transpose(1, 0, 2), other)
    source = save(tmp_path / "map.nii.gz", home.transpose(1, 0, 2), other)
    assert run("import", source, "--reference", reference, "--mask", mask, "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(Decoder.load(tmp_path / "out").weights, np.where(np.abs(home) > 1, home, 0))


def test_today_may_be_a_dicom_folder_or_file(person: Person, study: Path, tmp_path: Path) -> None:
    grid = scan_grid((48, 48, 30), (4.4, 4.4, 4.4))
    writer = MosaicWriter(tmp_path / "dicom", grid, TR_S)
    still = person.on(grid, np.eye(4), person.signal)
    for index in range(3):
        writer.write(index, np.maximum(still, 0))
    command = ["place", study / "decoder", "--name", "a", "--on"]
    for number, today in enumerate((tmp_path / "dicom", writer.path(1))):
        assert run(*command, today, "--out", tmp_path / str(number)) == 0
        assert Decoder.load(tmp_path / str(number)).grid.difference(grid) == ""


def test_what_is_no_volume_of_today_is_refused(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.dcm").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for today in (tmp_path / "words.dcm", tmp_path / "empty", tmp_path / "none"):
        assert run("place", study / "decoder", "--on", today, "--out", tmp_path / "out") == 2
        assert str(today.name) in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert run("place", tmp_path / "none", "--on", study / "today.nii.gz", "--out", tmp_path / "out") == 2
    assert "expected a decoder folder" in capsys.readouterr().err


def test_days_are_studies_dates_or_grids_or_as_given(tmp_path: Path) -> None:
    grid, other = Grid((16, 16, 9), np.diag([4.0, 4, 4, 1])), Grid((16, 16, 9), np.diag([3.0, 4, 4, 1]))
    volume = np.full(grid.shape, 100.0)
    for day in (3, 4):
        writer = MosaicWriter(tmp_path / f"day{day}", grid, TR_S, started=datetime.datetime(2026, 3, day, 10, 0))
        for index in range(3):
            writer.write(index, volume)
    save(tmp_path / "file.nii.gz", np.repeat(volume[..., None], 3, axis=3), other)
    runs = [tmp_path / "day3", tmp_path / "day4", tmp_path / "file.nii.gz"]
    events = ["--events", "x", "y", "z", "--target", "a - b", "--out", "o"]
    options = _parser().parse_args([str(word) for word in ("fit", *runs, *events)])
    opened = [open_with(path, options) for path in runs]
    assert _days(options, opened) == ["20260303", "20260304", "grid 2"]
    options.day = ["one", "two", "two"]
    assert _days(options, opened) == ["one", "two", "two"]
