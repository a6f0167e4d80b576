"""Headers and pixels that mean something else than they seem to: what others have met, and their brothers made up here."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSNearLossless, RLELossless

from rtevo.errors import DataError
from rtevo.ingest import FolderSource, Volume, describe, survey
from rtevo.ingest.__main__ import main
from rtevo.ingest.dicom import parse_dicom
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter

Made = Any  # the class in conftest.py
Encode = Callable[..., bytes]
VOLUMES, SLICES, TR_S = 4, 5, 2.0


@pytest.fixture
def field(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies one folder of small inputs that others have met; skips where there are none."""
    source = Path(os.environ.get("RTEVO_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "field"

    def copy(name: str) -> Path:
        if not (source / name).is_dir():
            pytest.skip(f"no such inputs: {source / name} is not there (set RTEVO_TEST_DATA)")
        shutil.copytree(source / name, tmp_path / name, copy_function=shutil.copyfile)
        (tmp_path / name).chmod(0o755)
        return tmp_path / name

    return copy


def write(folder: Path, datasets: list[Any], encode: Encode) -> Path:
    """Put data sets into a folder as files, in this order."""
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        (folder / f"{number:04d}.dcm").write_bytes(encode(dataset, enforce_file_format=True))
    return folder


# --- bits -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("high_bit", "compressed"), [(11, False), (13, False), (15, False), (11, True)])
def test_bits_that_hold_no_pixel_do_not_count(signed: bool, high_bit: int, compressed: bool, made: Made, encode: Encode) -> None:
    """Unused ones above the highest bit are set, as overlays and old scanners do, and those below are."""
    values = made.pixels[0, 0].astype(np.int32) - (2048 if signed else 0)  # of 12 bits
    shift = high_bit - 11
    unused = 0xFFFF ^ (0xFFF << shift)
    dataset = made.slice(0, 0)
    dataset.HighBit, dataset.PixelRepresentation = high_bit, int(signed)
    dataset.PixelData = (((values & 0xFFF) << shift) | unused).astype(np.uint16).tobytes()
    if compressed:
        dataset.compress(RLELossless)
    (part,) = parse_dicom(encode(dataset, enforce_file_format=True), "x").parts
    np.testing.assert_array_equal(part.pixels[0], values)


def test_bits_above_those_stored(field: Callable[[str], Path]) -> None:
    source = FolderSource(field("bits_above_stored"), patience_s=1.0)
    assert [round(float(volume.data.mean()), 1) for volume in source.poll() if volume.data is not None] == [399.5, 409.5]


# --- what is not there ----------------------------------------------------------------------------------------------------------------


def undecodable(made: Made, volumes: list[int]) -> list[Any]:
    """A run of which the slices of some volumes are compressed into what no decoder reads."""
    datasets = []
    for volume in range(VOLUMES):
        for index in range(SLICES):
            datasets.append(made.slice(volume, index))
            if volume in volumes:
                datasets[-1].file_meta.TransferSyntaxUID = JPEGLSNearLossless
                datasets[
                    -1
                ].PixelData = (
                    b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0\x04\0\0\0odds\xfe\xff\xdd\xe0\0\0\0\0"  # offset table, fragment, end
                )
                datasets[-1]["PixelData"].is_undefined_length = True
    return datasets


def test_a_run_that_cannot_be_decoded_is_not_written(
    made: Made, encode: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "in", undecodable(made, [0, 1, 2, 3]), encode)
    assert main([str(folder), "--out", str(tmp_path / "run.nii.gz")]) == 1
    told = capsys.readouterr().err
    assert "compressed pixels" in told
    assert "install pylibjpeg[libjpeg]" in told
    assert not (tmp_path / "run.nii.gz").exists()
    with pytest.raises(DataError, match=r"install pylibjpeg\[libjpeg\]"):  # a session with it ends before it begins
        describe(folder)


def test_volumes_that_cannot_be_decoded_are_named_with_an_exit_status(
    made: Made, encode: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "in", undecodable(made, [2]), encode)
    assert main([str(folder), "--out", str(tmp_path / "run.nii.gz")]) == 1
    told = capsys.readouterr().err
    assert "written, but 1 of its volumes cannot be read and are NaN: 2" in told
    assert "install pylibjpeg[libjpeg]" in told
    data = nibabel.load(tmp_path / "run.nii.gz").get_fdata()
    assert [bool(np.isnan(data[..., k]).all()) for k in range(VOLUMES)] == [False, False, True, False]


def test_a_compressed_recording_without_its_decoder(
    field: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        import jpeg_ls  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("its decoder (pyjpegls) is installed")
    assert main([str(field("compressed_nan")), "--out", str(tmp_path / "R.nii.gz")]) == 1
    assert "install" in capsys.readouterr().err
    assert not (tmp_path / "R.nii.gz").exists()


# --- a series for every volume --------------------------------------------------------------------------------------------------------


def interoperable(made: Made, change: Callable[[Any, int, int], None] = lambda *_: None) -> list[Any]:
    """Every slice of a run whose volumes have a series each, as Siemens XA exports them in the classic form."""
    datasets = []
    for volume in range(VOLUMES):
        for index in range(SLICES):
            dataset = made.slice(volume, index, "SIEMENS")
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MFSPLIT"]
            dataset.NumberOfTemporalPositions, dataset.InstanceNumber, dataset.AcquisitionNumber = VOLUMES, index + 1, 1
            dataset.SeriesNumber = 9 + volume
            dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID[:50]}.{volume}"
            dataset.StudyInstanceUID = f"{dataset.StudyInstanceUID[:50]}.{volume}"
            dataset.AcquisitionTime = f"1015{TR_S * volume + 0.4 * (2 * index % SLICES):09.6f}"
            change(dataset, volume, index)
            datasets.append(dataset)
    return datasets


def same_uid(dataset: Any, volume: int, index: int) -> None:
    dataset.SeriesInstanceUID = dataset.SeriesInstanceUID.rpartition(".")[0]


def counted(dataset: Any, volume: int, index: int) -> None:
    dataset.AcquisitionNumber = volume + 1


def no_announcement(dataset: Any, volume: int, index: int) -> None:
    del dataset.NumberOfTemporalPositions, dataset.AcquisitionNumber


def every_other_number(dataset: Any, volume: int, index: int) -> None:
    dataset.SeriesNumber = 9 + 2 * volume


def time_of_the_volume(dataset: Any, volume: int, index: int) -> None:
    dataset.AcquisitionTime = f"1015{TR_S * volume:09.6f}"


def check(volumes: list[Volume], made: Made) -> None:
    assert [volume.index for volume in volumes] == list(range(VOLUMES))
    for volume in volumes:
        np.testing.assert_array_equal(volume.data, made.data(volume.index))


CHANGES = [lambda *_: None, same_uid, counted, no_announcement, every_other_number, time_of_the_volume]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: getattr(change, "__name__", "plain").strip("<>"))
@pytest.mark.parametrize("order", ["as sent", "backwards", "shuffled"])
def test_a_series_for_every_volume_with_a_file_for_every_slice(
    change: Callable[[Any, int, int], None], order: str, made: Made, encode: Encode, tmp_path: Path
) -> None:
    datasets = interoperable(made, change)
    if order != "as sent":
        if change is every_other_number and order == "shuffled":
            return  # which volume a slice is of is not clear before another came at its place
        datasets = datasets[::-1] if order == "backwards" else [datasets[i] for i in np.random.default_rng(3).permutation(len(datasets))]
    source = FolderSource(write(tmp_path / "in", datasets, encode), patience_s=1.0)
    check(source.poll() + source.finish(), made)
    assert [problem for problem in source.problems if "counts as the first" not in problem] == []
    found = survey(tmp_path / "in")
    assert found.run is not None
    assert (found.run.n_volumes, found.run.grid.shape[2], found.run.tr_s, found.problems) == (VOLUMES, SLICES, TR_S, [])


def test_such_a_run_as_it_comes(made: Made, encode: Encode, clock: Any, tmp_path: Path) -> None:
    source = FolderSource(tmp_path, patience_s=1.0, clock_ns=clock)
    volumes: list[Volume] = []
    for number, dataset in enumerate(interoperable(made)):
        (tmp_path / f"{number}.dcm").write_bytes(encode(dataset, enforce_file_format=True))
        volumes += source.poll()
        clock.advance(TR_S / SLICES)
    assert len(volumes) >= VOLUMES - 1
    check(volumes + source.finish(), made)


def test_volumes_that_nothing_puts_in_order_are_told_with_advice(made: Made, encode: Encode, tmp_path: Path) -> None:
    def change(dataset: Any, volume: int, index: int) -> None:
        dataset.AcquisitionTime = "101500"

    found = survey(write(tmp_path / "in", interoperable(made, change), encode))
    assert [(info.n_volumes, info.grid.shape[2]) for info in found.series] == [(1, SLICES)] * VOLUMES  # never dealt out
    (told,) = found.problems
    assert "export the run as mosaics or in the enhanced form" in told


def test_a_second_run_with_a_file_for_every_slice_is_another(made: Made, encode: Encode, tmp_path: Path) -> None:
    datasets = []
    for run in range(2):
        for volume in range(VOLUMES):
            for index in range(SLICES):
                dataset = made.slice(volume, index, "SIEMENS")
                dataset.SeriesNumber, dataset.SeriesInstanceUID = 7 + run, f"{dataset.SeriesInstanceUID[:50]}.{run}"
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{run}"
                dataset.AcquisitionTime = f"10{15 + run}{TR_S * volume:09.6f}"
                datasets.append(dataset)
    for order in (range(len(datasets)), np.random.default_rng(1).permutation(len(datasets))):
        found = survey(write(tmp_path / "in", [datasets[i] for i in order], encode))
        assert sorted((info.number, info.n_volumes) for info in found.series) == [(7, VOLUMES), (8, VOLUMES)]


@pytest.mark.parametrize("vendor", ["SIEMENS", "CANON_MEC", "GE MEDICAL SYSTEMS"])
def test_slices_at_places_of_their_own_are_not_dealt_out(vendor: str, made: Made, encode: Encode, tmp_path: Path) -> None:
    """The header announces volumes of which the series holds one."""
    datasets = [made.slice(0, index, vendor) for index in range(SLICES)]
    for index, dataset in enumerate(datasets):
        dataset.NumberOfTemporalPositions, dataset.InstanceNumber, dataset.AcquisitionNumber = 2, index + 1, 1
    found = survey(write(tmp_path / "in", datasets, encode), "7")
    assert found.run is not None
    assert (found.run.n_volumes, found.run.grid.shape[2]) == (1, SLICES)


def test_two_series_of_one_identifier(field: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = field("same_uid_two_series")
    for number in (202, 501):
        out = tmp_path / f"{number}.nii"
        assert main([str(folder), "--series", str(number), "--out", str(out)]) == 0, capsys.readouterr().err
        found = survey(folder, str(number)).run
        assert found is not None
        assert (found.number, found.n_volumes) == (number, 1)
        image = nibabel.load(out)
        assert image.shape == (8, 8, 2, 1)
        np.testing.assert_allclose(image.affine, found.grid.affine, atol=1e-3)
        assert np.isfinite(image.get_fdata()).all()


def test_two_series_of_one_identifier_made_up(made: Made, encode: Encode, tmp_path: Path) -> None:
    datasets = [made.slice(volume, index) for volume in range(VOLUMES) for index in range(SLICES)]
    other = type(made)(seed=1)
    for volume in range(VOLUMES):
        for index in range(SLICES):
            dataset = other.slice(volume, index)
            dataset.SeriesInstanceUID, dataset.SeriesNumber = made.series_uid, 8
            datasets.append(dataset)
    folder = write(tmp_path / "in", datasets, encode)
    for number, run in ((7, made), (8, other)):
        found = survey(folder, str(number)).run
        assert found is not None
        out = tmp_path / f"{number}.nii"
        assert main([str(folder), "--series", str(number), "--out", str(out)]) == 0
        data = nibabel.load(out).get_fdata()
        for volume in range(VOLUMES):
            np.testing.assert_array_equal(data[..., volume], run.data(volume))


# --- times ----------------------------------------------------------------------------------------------------------------------------


def ge(made: Made, tr_s: float, trigger_ms: Callable[[int, int], float], volumes: int = VOLUMES) -> list[Any]:
    """A GE run with trigger times; the header says `tr_s`."""
    datasets = []
    for volume in range(volumes):
        for index in range(SLICES):
            dataset = made.slice(volume % VOLUMES, index, "GE")
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{dataset.SOPInstanceUID[:50]}.{volume}"
            dataset.RepetitionTime, dataset.TriggerTime = tr_s * 1000, trigger_ms(volume, index)
            dataset.InstanceNumber, dataset.NumberOfTemporalPositions = volume * SLICES + index + 1, volumes
            datasets.append(dataset)
    return datasets


@pytest.mark.parametrize(
    ("header_s", "every_s"),
    [(1.0, 1.35), (2.0, 4.0), (2.0, 1.0), (3.0, 2.88), (0.05, 2.0)],
    ids=["delay", "passes", "half", "close", "shot"],
)
def test_the_repetition_time_is_what_the_trigger_times_say(
    header_s: float, every_s: float, made: Made, encode: Encode, tmp_path: Path
) -> None:
    folder = write(tmp_path / "in", ge(made, header_s, lambda volume, index: 74 + 1000 * (every_s * volume + 0.15 * index)), encode)
    found = survey(folder, "7").run
    assert found is not None
    assert found.tr_s == every_s
    assert found.slice_times_s == pytest.approx([0.15 * index for index in range(SLICES)])
    (told,) = found.problems
    assert f"acquired every {every_s:g} s," in told
    source = FolderSource(folder, series="7", patience_s=1.0)
    volumes = source.poll()
    assert (volumes[-1].tr_s, source.tr_s) == (every_s, every_s)


def test_too_few_volumes_to_see_the_repetition_time_are_told(made: Made, encode: Encode, tmp_path: Path) -> None:
    found = survey(write(tmp_path / "in", ge(made, 1.0, lambda volume, index: 74 + 1350 * volume + 100 * index, 2), encode)).run
    assert found is not None
    assert found.tr_s == 1.0
    assert found.problems == (
        "by the headers, volumes were acquired 1.35 s apart, unlike the repetition time of 1 s; too few came to determine it",
    )


def test_a_pause_is_no_repetition_time(made: Made, encode: Encode, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", ge(made, 2.0, lambda volume, index: 2000 * volume + (9000 if volume > 4 else 0), 8), encode)
    found = survey(folder).run
    assert found is not None
    assert found.tr_s == 2.0
    (told,) = found.problems
    assert told.startswith("volume 5: acquired 19.000 s after the first by its header, expected 10.000 s")


@pytest.mark.parametrize("tr_s", [0.8, 0.9, 1.5, 2.0, 2.5])
def test_times_of_whole_seconds_do_not_contradict_the_header(tr_s: float, made: Made, encode: Encode, tmp_path: Path) -> None:
    datasets = []
    for volume in range(30):
        dataset = made.enhanced([volume % VOLUMES], instance=volume + 1)
        timing = dataset.SharedFunctionalGroupsSequence[0].MRTimingAndRelatedParametersSequence[0]
        timing.RepetitionTime = tr_s * 1000
        seconds = int(7.3 + tr_s * volume)
        for groups in dataset.PerFrameFunctionalGroupsSequence:
            groups.FrameContentSequence[0].FrameAcquisitionDateTime = f"2026010210{15 + seconds // 60:02d}{seconds % 60:02d}"
            groups.FrameContentSequence[0].TemporalPositionIndex = 1
        datasets.append(dataset)
    found = survey(write(tmp_path / "in", datasets, encode)).run
    assert found is not None
    assert (found.n_volumes, found.tr_s) == (30, tr_s)
    assert not any("were acquired every" in problem for problem in found.problems)


@pytest.mark.parametrize(("name", "tr_s", "volumes"), [("ge_multiphase_delay", 1.35, 5), ("ge_two_passes", 4.0, 4)])
def test_recorded_runs_whose_header_contradicts_their_trigger_times(
    name: str, tr_s: float, volumes: int, field: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = field(name)
    found = survey(folder).run
    assert found is not None
    assert (found.tr_s, found.n_volumes, found.missing) == (tr_s, volumes, ())
    assert not any("was the clock set" in problem for problem in found.problems)
    assert main([str(folder), "--out", str(tmp_path / "run.nii")]) == 0
    assert nibabel.load(tmp_path / "run.nii").header.get_zooms()[3] == np.float32(tr_s)


def test_slice_times_beyond_the_repetition_time_are_none(field: Callable[[str], Path]) -> None:
    (found,) = survey(field("slice_times_beyond_tr")).series
    assert found.slice_times_s is None
    assert "beyond the repetition time of 2 s: the slice times are not used" in found.problems[0]
    assert found.why == "arterial spin labelling"


def test_slice_times_beyond_the_repetition_time_of_a_multi_frame_file(made: Made, encode: Encode, tmp_path: Path) -> None:
    datasets = [made.enhanced([volume], instance=volume + 1) for volume in range(VOLUMES)]
    for volume, dataset in enumerate(datasets):
        for index, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            content = groups.FrameContentSequence[0]
            content.FrameAcquisitionDateTime = f"202601021015{TR_S * volume + 0.7 * index:09.6f}"
    (found,) = survey(write(tmp_path / "in", datasets, encode)).series
    assert (found.slice_times_s, found.tr_s) == (None, TR_S)
    assert [problem for problem in found.problems if "2.8 s after the first" in problem]


# --- numbers --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [SLICES, 7])
@pytest.mark.parametrize("backwards", [False, True])
def test_instance_numbers_that_count_slices_of_a_mosaic(step: int, backwards: bool, tmp_path: Path) -> None:
    grid = Grid((8, 6, SLICES), np.diag([-3.0, 3.0, 3.5, 1.0]))
    writer = MosaicWriter(tmp_path / "as sent", grid, TR_S)
    (tmp_path / "in").mkdir()
    for volume in range(6):
        dataset = pydicom.dcmread(io.BytesIO(writer.encode(volume, np.full(grid.shape, volume, np.float32))))
        dataset.InstanceNumber, dataset.AcquisitionNumber = volume * step + 1, volume + 1
        dataset.save_as(tmp_path / "in" / f"{9 - volume if backwards else volume}.dcm")
    source = FolderSource(tmp_path / "in", patience_s=1.0)
    volumes = source.poll() + source.finish()
    assert [(volume.index, float(volume.data.mean())) for volume in volumes if volume.data is not None] == [(k, k) for k in range(6)]
    assert source.problems == []


def test_a_run_that_ended_early_is_one_line(made: Made, encode: Encode, tmp_path: Path) -> None:
    """Sent place after place, so that of every volume some slices are there."""
    whole = [made.slice(volume, index) for index in range(SLICES) for volume in range(VOLUMES)]
    found = survey(write(tmp_path / "in", whole[:-3], encode)).run
    assert found is not None
    assert found.problems == ("volumes 1 to 3: 4 of 5 slices came",)


def test_a_run_started_again_under_its_series_is_two_lines(made: Made, encode: Encode, tmp_path: Path) -> None:
    datasets = [made.slice(volume, index) for volume in range(VOLUMES) for index in range(SLICES)]
    again = type(made)(seed=5)
    for volume in range(VOLUMES):
        for index in range(SLICES):
            dataset = again.slice(volume, index)
            dataset.SeriesInstanceUID = made.series_uid
            datasets.append(dataset)
    source = FolderSource(write(tmp_path / "in", datasets, encode), patience_s=1.0)
    check(source.poll() + source.finish(), made)
    first, rest = source.problems
    assert "is the same as an earlier volume" in first
    assert rest.startswith(f"{VOLUMES * SLICES - 1} more files")


@pytest.mark.parametrize(
    ("name", "functional"),
    [("pcasl_2d_m0", False), ("pASL", False), ("3D ASL", False), ("asl_2d_tra", False), ("Perfusion_Weighted", False), ("basl task", True)],
)
def test_arterial_spin_labelling_is_not_functional(name: str, functional: bool, made: Made, encode: Encode) -> None:
    dataset = made.slice(0, 0)
    dataset.SeriesDescription = dataset.ProtocolName = name
    header = parse_dicom(encode(dataset), "x").series
    assert (header.likeness()[1] == "arterial spin labelling") is not functional
    dataset.SeriesDescription = dataset.ProtocolName = "bold"
    dataset.ArterialSpinLabelingContrast = "CONTINUOUS"
    assert parse_dicom(encode(dataset), "x").series.likeness()[1] == "arterial spin labelling"
