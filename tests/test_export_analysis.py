"""An exported run in the hands of the tools that analyse it: pybids finds it, nilearn fits it unedited."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtevo import records
from rtevo.config import build, dump
from rtevo.export import export
from rtevo.kernels.rigid import matrix_from_params
from rtevo.realign import Realigner, resliced
from rtevo.record import LogWriter, Recorder
from rtevo.records import EventKind, VolumeFlag

SHAPE, VOXEL_MM, TR_S, VOLUMES, SECOND_NS = (16, 15, 12), 4.0, 2.0, 60, 1_000_000_000
AFFINE = np.array([[-VOXEL_MM, 0, 0, 30], [0, VOXEL_MM, 0, -28], [0, 0, VOXEL_MM, -20], [0, 0, 0, 1.0]])
MISSING, UNALIGNED = (20, 21, 40), (30,)
RESLICED = 0.01  # of the brightest voxel: the head is compact, and two ways of finding the same motion differ by micrometres
BLOCK = 8  # volumes
ACTIVE = np.s_[5:8, 6:9, 5:7]


def head() -> np.ndarray:
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    radius = sum(a**2 for a in axes)
    return (1000 * np.exp(-2 * radius) * (1 + 0.4 * np.sin(5 * axes[0]) * np.cos(4 * axes[1] + axes[2]))).astype(np.float32)


def slot(dtype: np.dtype[np.void], **fields: object) -> np.void:
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    return record[()]


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a session: images on and off in blocks, to which some voxels respond; volumes that are missing."""

    def write(name: str = "out", run: int = 1, missing: tuple[int, ...] = MISSING, kind: str = "volumes") -> Path:
        rng = np.random.default_rng(run)
        out = tmp_path / name
        out.mkdir()
        text = dump(build({"session": {"participant": "07", "session": "a", "run": run}, "record": {"save_volumes": "raw"}}))
        (out / "session.toml").write_text(text, encoding="utf-8")
        with LogWriter(out / "record.jsonl") as log:
            log.append("start", {"rtevo": "1.2", "tr_s": TR_S})
        recorder = Recorder(out, True)
        for index in range(VOLUMES):
            flags = VolumeFlag.MISSING if index in missing else VolumeFlag.UNALIGNED if index in UNALIGNED else VolumeFlag.OK
            data = head() + rng.normal(0, 4, SHAPE).astype(np.float32)
            data[ACTIVE] *= 1 + 0.05 * ((index - 3) // BLOCK % 2)
            data[:, 0, 0] = np.nan if index == 5 else data[:, 0, 0]
            fields = {"index": index, "flags": int(flags), "closed_ns": index, "ingested_ns": index}
            volume = np.zeros((), records.volume_dtype(data.size))
            for name_, value in {**fields, "acquisition": b"{}"}.items():
                volume[name_] = value
            records.put_volume(volume, data, records.Grid(SHAPE, AFFINE))
            recorder.take("volumes", volume[()])
            motion = [np.nan] * 6 if flags else [0.001 * index] * 3 + [0.0] * 3
            moved_mm = np.nan if flags or index == 0 else 0.003
            recorder.take("aligned", slot(records.aligned_dtype(), **fields, motion=motion, framewise_displacement_mm=moved_mm))
        recorder.take("events", slot(records.event_dtype(), kind=EventKind.TRIGGER, t_ns=10 * SECOND_NS))
        for candidate, first in enumerate(range(BLOCK, VOLUMES, 2 * BLOCK)):
            key = {"generation": 0, "candidate": candidate}
            recorder.take("images", slot(records.image_dtype(4, 4, 2), **key, pixels=np.full((4, 4, 3), 50 * candidate)))
            for kind_, volume in ((EventKind.ONSET, first), (EventKind.OFFSET, first + BLOCK)):
                t_ns = int((10 + TR_S * volume) * SECOND_NS)
                recorder.take("events", slot(records.event_dtype(), kind=kind_, **key, t_ns=t_ns))
        recorder.log.close()
        return out

    return write


@pytest.mark.slow
def test_nilearn_fits_an_export_unedited(recorded: Callable[..., Path], tmp_path: Path) -> None:
    from nilearn.glm.first_level import first_level_from_bids

    bids = tmp_path / "bids"
    export(recorded(), bids)
    export(recorded("two", run=2, missing=()), bids)
    models, images, events, confounds = first_level_from_bids(
        bids, "rtevo", space_label="scanner", derivatives_folder="derivatives/rtevo", slice_time_ref=0.5, smoothing_fwhm=4.0
    )
    assert (len(models), [len(each) for each in (*images, *events, *confounds)]) == (1, [2, 2, 2])
    assert models[0].t_r == TR_S
    for run, table in enumerate(confounds[0]):
        assert np.isfinite(table.to_numpy(float)).all()
        spikes = [name for name in table if "outlier" in name]
        lost = [*(MISSING if run == 0 else ()), *UNALIGNED]
        assert [list(np.flatnonzero(table[name])) for name in spikes] == [[volume] for volume in lost]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn says what it does to the image's mean and mask
        model = models[0].fit(images[0], events=events[0], confounds=confounds[0])
        z = model.compute_contrast("image").get_fdata()
    assert z[ACTIVE].mean() > 8
    outside = np.delete(z, range(4, 9), axis=0)
    assert np.abs(outside[np.abs(outside) > 0]).mean() < 1.5


def test_pybids_finds_the_run_and_its_derivatives(recorded: Callable[..., Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own libraries
        from bids import BIDSLayout

        export(recorded(), tmp_path / "bids")
        layout = BIDSLayout(tmp_path / "bids", derivatives=[tmp_path / "bids" / "derivatives" / "rtevo"])
        wanted = {"subject": "07", "session": "a", "task": "rtevo", "run": 1, "extension": ".nii.gz", "suffix": "bold"}
        (raw,) = layout.get(scope="raw", **wanted)
        (derived,) = layout.get(scope="derivatives", space="scanner", desc="preproc", **wanted)
        assert raw.get_metadata()["RepetitionTime"] == derived.get_metadata()["RepetitionTime"] == TR_S
        assert len(layout.get(scope="raw", suffix="events", extension=".tsv")) == 1
        assert derived.get_metadata()["ReplacedVolumes"] == sorted([*MISSING, *UNALIGNED])
        assert raw.get_metadata()["MissingVolumes"] == list(MISSING)


@pytest.mark.slow
def test_the_data_set_passes_the_validator(recorded: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("bids_validator_deno")
    bids = tmp_path / "bids"
    export(recorded(), bids)
    for folder in (bids, bids / "derivatives" / "rtevo"):
        validator = [sys.executable, "-c", "import bids_validator_deno as v; v.cli()", "--ignoreWarnings", str(folder)]
        checked = subprocess.run(validator, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_realigned_volumes_are_whole_and_lie_on_the_reference(recorded: Callable[..., Path], tmp_path: Path) -> None:
    export(recorded(), tmp_path / "bids")
    (path,) = (tmp_path / "bids" / "derivatives" / "rtevo").rglob("*_space-scanner_desc-preproc_bold.nii.gz")
    image = nibabel.load(path)
    data = image.get_fdata()
    assert (data.shape, image.header.get_zooms()[3]) == ((*SHAPE, VOLUMES), TR_S)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    assert np.isfinite(data).all()
    np.testing.assert_allclose(data[..., 20], np.delete(data, [*MISSING, *UNALIGNED], axis=3).mean(axis=3), rtol=1e-4)
    told = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert (told["StartTime"], told["SliceTimingCorrected"]) == (TR_S / 2, False)


def test_a_volume_is_resliced_as_the_realigner_does() -> None:
    reference = head()
    with Realigner(reference, AFFINE) as realigner:
        truth = np.array([0.8, -0.5, 0.6, 0.01, -0.02, 0.015])
        moved = resliced(reference, AFFINE, truth)
        motion, aligned = realigner.align(moved)
        np.testing.assert_array_equal(resliced(moved, AFFINE, motion.params), aligned)
        np.testing.assert_allclose(motion.matrix, np.linalg.inv(matrix_from_params(truth, realigner.centre)), atol=0.05)
    inner = np.s_[3:-3, 3:-3, 3:-3]
    assert np.abs(aligned[inner] - reference[inner]).max() < RESLICED * reference.max()
