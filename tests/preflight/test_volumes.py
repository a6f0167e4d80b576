"""What comes from the scanner: each check once where all is well, and once where it is not."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from rtevo.bridge.keys import make_keys
from rtevo.config import build
from rtevo.decode import write_decoder
from rtevo.errors import ConfigError, DataError, DecoderError
from rtevo.preflight import volumes
from rtevo.preflight.findings import Known
from rtevo.records import Grid
from rtevo.session import checks
from rtevo.simulate import Simulation, make_decoder
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.today import Today

from .conftest import AFFINE, SHAPE, head, verdicts

Make = Callable[..., Known]
TR_S = 2.0


def nifti(path: Path, affine: np.ndarray = AFFINE, tr_s: float = TR_S) -> Path:
    image = nibabel.Nifti1Image(np.repeat(head()[..., None], 2, axis=3).astype(np.int16), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], tr_s))
    nibabel.save(image, path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def watch(folder: Path, decoder: Path, **acquisition: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {
        "acquisition": {"source": "watch", "folder": str(folder), "tr_s": TR_S, **acquisition},
        "decoder": {"folder": str(decoder)},
    }


def learnt(known: Known) -> Known:
    """Run the checks before the sample's."""
    assert verdicts(list(volumes.source(known)))["volumes"] == "pass"
    assert verdicts(list(volumes.decoder(known)))["decoder"] == "pass"
    return known


def test_a_simulated_participant_who_prefers_something(known: Make) -> None:
    assert verdicts(list(volumes.source(known()))) == {"volumes": "pass"}
    with pytest.raises(ConfigError, match="spyder"):
        list(volumes.source(known({"simulation": {"prefers": "spyder"}})))


def test_maps_and_masks_that_cannot_be_read_are_named(known: Make, tmp_path: Path) -> None:
    (tmp_path / "map.nii").write_text("no image")
    with pytest.raises(DataError, match=r"map\.nii: expected a NIfTI image"):
        list(volumes.source(known({"acquisition": {"distortion": str(tmp_path / "map.nii")}})))
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), tmp_path / "map.nii")
    state = known({"decoder": {"nuisance": ["csf"], "csf_mask": str(tmp_path / "map.nii")}})
    assert verdicts(list(volumes.source(state))) == {"volumes": "pass"}
    with pytest.raises(DecoderError, match="csf: expected at least 20 voxels, found 0"):
        list(volumes.decoder(state))


def test_a_recording(known: Make, tmp_path: Path) -> None:
    nifti(tmp_path / "run.nii")
    replay = {"acquisition": {"source": "replay", "folder": str(tmp_path)}}
    state = known(replay)
    assert verdicts(list(volumes.source(state))) == {"volumes": "pass"}
    assert (state.tr_s, state.source and state.source.n_volumes) == (TR_S, 2)
    (tmp_path / "run.nii").unlink()
    with pytest.raises(DataError):
        list(volumes.source(known(replay)))


def test_a_recording_with_a_gap_is_told(known: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nifti(tmp_path / "run.nii")
    described = checks.describe_source(build({"acquisition": {"source": "replay", "folder": str(tmp_path)}}))
    monkeypatch.setattr(checks, "describe_source", lambda _: replace(described, missing=(1,)))
    (found,) = volumes.source(known({"acquisition": {"source": "replay", "folder": str(tmp_path)}}))
    assert (found.verdict, "1 volumes are missing" in found.found) == ("warn", True)


# --- the way in ------------------------------------------------------------------------------------------------------------------------


def test_a_watched_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert volumes.watched(tmp_path).verdict == "pass"
    assert volumes.watched(tmp_path / "later").verdict == "warn"
    (tmp_path / "file").touch()
    assert volumes.watched(tmp_path / "file").verdict == "fail"
    with monkeypatch.context() as slow:
        slow.setattr(volumes, "LISTING_S", 0.0)
        assert "empty folder" in volumes.watched(tmp_path).to_do


def test_a_share_that_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(volumes, "_list", lambda folder: never.wait())
    monkeypatch.setattr(volumes, "SHARE_S", 0.01)
    found = volumes.watched(tmp_path)
    never.set()
    assert (found.verdict, "the share is dead" in found.found) == ("fail", True)


@pytest.mark.parametrize("delivery", ["dicom", "push"])
def test_the_network_is_listened_at_and_answers(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path, delivery: str) -> None:
    port = free_port()
    tables = watch(tmp_path, decoder_folder(), delivery=delivery, address="127.0.0.1", port=port)
    (found,) = volumes.delivery(known(tables))
    assert (found.verdict, len(found.figures)) == ("warn" if delivery == "dicom" else "pass", 1)  # an echo, from here alone
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        tables["acquisition"]["port"] = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="cannot listen there"):
            list(volumes.delivery(known(tables)))


@pytest.mark.parametrize(("delivery", "peer"), [("dicom", "MRC@192.168.1.20"), ("push", "@192.168.1.20")])
def test_all_addresses_with_peers(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path, delivery: str, peer: str) -> None:
    make_keys(tmp_path / "keys", ["sender"])
    keys = {"keys": str(tmp_path / "keys")} if delivery == "push" else {}
    tables = watch(tmp_path, decoder_folder(), delivery=delivery, address="0.0.0.0", port=free_port(), peers=[peer], **keys)
    assert verdicts(list(volumes.delivery(known(tables)))) == {"delivery": "pass"}


def test_faults_of_a_rehearsal(known: Make) -> None:
    assert verdicts(list(volumes.delivery(known({"simulation": {"faults": "drop=0.1"}})))) == {"delivery": "pass"}
    with pytest.raises(ConfigError):
        list(volumes.delivery(known({"simulation": {"faults": "drop=7"}})))


# --- decoder and sample ----------------------------------------------------------------------------------------------------------------


def test_decoders(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path) -> None:
    tables = watch(tmp_path, decoder_folder(noise=False))
    (found,) = volumes.decoder(known(tables))
    assert (found.verdict, "it does not hold the voxels' noise" in found.found) == ("warn", True)
    (tmp_path / "decoder" / "mask_img.nii.gz").unlink()
    with pytest.raises(DecoderError):
        list(volumes.decoder(known(tables)))


def test_a_recording_without_a_decoder_is_scored_by_a_map_that_means_nothing(known: Make, tmp_path: Path) -> None:
    nifti(tmp_path / "run.nii")
    state = known({"acquisition": {"source": "replay", "folder": str(tmp_path)}})
    list(volumes.source(state))
    (found,) = volumes.decoder(state)
    assert (found.verdict, "mean nothing" in found.found) == ("warn", True)
    assert verdicts(list(volumes.sample(state))) == {"sample volume": "pass"}


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
def test_a_sample_file(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    state = learnt(known(watch(tmp_path / "in", decoder_folder()), sample=nifti(tmp_path / name)))
    assert verdicts(list(volumes.sample(state))) == {"sample volume": "pass"}
    assert state.volume is not None
    assert state.volume.shape == SHAPE


def test_a_sample_folder_of_dicom_files(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path) -> None:
    state = known(watch(tmp_path / "in", decoder_folder()), sample=tmp_path / "sample")
    learnt(state)
    (tmp_path / "sample").mkdir()
    assert state.grid is not None
    writer = MosaicWriter(tmp_path / "sample", state.grid, TR_S, description="bold")
    path = writer.path(0)
    path.write_bytes(writer.encode(0, head()))
    assert verdicts(list(volumes.sample(state))) == {"sample volume": "pass"}
    state.sample = path
    assert verdicts(list(volumes.sample(state))) == {"sample volume": "pass"}


def test_a_volume_in_the_watched_folder_is_the_sample(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    state = learnt(known(watch(tmp_path / "in", decoder_folder())))
    (found,) = volumes.sample(state)
    assert (found.verdict, "placed on the run's first volumes" in found.found, "--sample" in found.found) == ("pass", True, True)
    nifti(tmp_path / "in" / "run.nii")
    assert verdicts(list(volumes.sample(state))) == {"sample volume": "pass"}


def test_a_sample_that_does_not_fit(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path) -> None:
    state = learnt(known(watch(tmp_path / "in", decoder_folder()), sample=nifti(tmp_path / "slow.nii", tr_s=2.5)))
    (found,) = volumes.sample(state)
    assert (found.verdict, "tr_s = 2.5" in found.to_do) == ("fail", True)
    state.config = replace(state.config, acquisition=replace(state.config.acquisition, tr_s=2.5, echoes=3))
    state.tr_s = 2.5
    (found,) = volumes.sample(state)
    assert (found.verdict, "expected 3 echoes of each volume, found 1" in found.found) == ("fail", True)
    state.config = replace(state.config, acquisition=replace(state.config.acquisition, largest=(4, 4, 4)))
    (found,) = volumes.sample(state)
    assert (found.verdict, "largest" in found.to_do) == ("fail", True)
    state.sample = tmp_path / "nothing.nii"
    with pytest.raises(DataError, match="found nothing"):
        list(volumes.sample(state))


def test_the_decoder_is_placed_on_a_sample_that_lies_elsewhere(
    known: Make, decoder_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    today = Simulation(shape=(40, 40, 18), voxel_size_mm=(6.0, 6.0, 6.4), today=Today.parse("shift=8 -5 4, turn=4 -3 6, slab=0 3 0"))
    made = make_decoder(today, duration_s=40)
    folder = tmp_path / "made"
    write_decoder(folder, "liking", made.reference, made.mask, made.weights, made.grid.affine, {}, made.noise_sd)
    image = nibabel.Nifti1Image(today.head().signal[..., None], today.grid.affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], TR_S))
    nibabel.save(image, tmp_path / "today.nii")
    state = learnt(known(watch(tmp_path / "in", folder), sample=tmp_path / "today.nii"))
    assert list(volumes.placement(state)) == []  # nothing to place it on
    assert verdicts(list(volumes.sample(state))) == {"sample volume": "pass"}
    (found,) = volumes.placement(state)
    assert found.figures["weight_kept"] > 0.8
    assert found.verdict in ("pass", "warn")
    assert str(tmp_path / "placement.png") in found.found
    assert (tmp_path / "placement.png").stat().st_size > 1000
    assert verdicts(list(volumes.realignment(state)))["realignment"] == "pass"
    state.volume = np.random.default_rng(0).standard_normal(state.volume.shape).astype(np.float32)
    (found,) = volumes.placement(state)
    assert (found.verdict, bool(found.to_do)) == ("fail", True)


def test_a_sample_whose_times_contradict_its_header(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The header's repetition time leaves a delay out, the times of acquisition do not."""
    every_s, writer = 1.35, MosaicWriter(tmp_path / "x", Grid(SHAPE, AFFINE), 1.0, description="bold")
    (tmp_path / "sample").mkdir()
    for volume in range(5):
        dataset = pydicom.dcmread(io.BytesIO(writer.encode(volume, head())))
        moment_s = 3600 * 10 + every_s * volume
        dataset.AcquisitionTime = f"{int(moment_s // 3600):02d}{int(moment_s % 3600 // 60):02d}{moment_s % 60:09.6f}"
        dataset.save_as(tmp_path / "sample" / f"{volume}.dcm")
    for tr_s, verdict in ((1.0, "fail"), (1.35, "warn")):
        tables = watch(tmp_path / "in", decoder_folder())
        tables["acquisition"]["tr_s"] = tr_s
        state = learnt(known(tables, sample=tmp_path / "sample"))
        (found,) = volumes.sample(state)
        assert found.verdict == verdict
        assert ("set [acquisition] tr_s = 1.35" in found.to_do) == (verdict == "fail")
        assert "tr_s = 1," not in found.to_do


def test_realignment(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = learnt(known(watch(tmp_path / "in", decoder_folder())))
    found = list(volumes.realignment(state))
    assert verdicts(found) == {"kernels": "pass", "realignment": "pass"}
    assert all(each.figures for each in found)
    monkeypatch.setattr(volumes.os, "access", lambda *_: False)
    state.volume = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    assert verdicts(list(volumes.realignment(state))) == {"kernels": "warn", "realignment": "fail"}


def test_realignment_that_is_too_slow_or_of_another_run(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path) -> None:
    state = learnt(known(watch(tmp_path / "in", decoder_folder())))

    class Converged:
        converged = True

    for times_ms, unlike, verdict in (([1.0], [], "pass"), ([1.0, 1500.0], [], "warn"), ([3000.0], [], "fail"), ([1.0], ["x"], "warn")):
        times_ms = times_ms if len(times_ms) == 1 else [times_ms[0]] * 3 + times_ms[1:]
        assert verdicts([volumes._speed(state, Converged(), times_ms, unlike)]) == {"realignment": verdict}
    state.config = build({"session": {"speed": 0.0}})  # time waits
    assert volumes._speed(state, Converged(), [3000.0], []).verdict == "pass"
