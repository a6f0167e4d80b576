"""A whole session of three echoes, distorted and delivered wrongly: computed again to the last bit, exported echo by echo."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rtevo.export.__main__ import main as export
from rtevo.record import RecordedSession, VolumeRecord
from rtevo.records import VolumeFlag
from rtevo.run import main

from .conftest import Warm

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("echoes")]  # one session for all

SETTINGS = """
[acquisition]
echoes = 3
distortion = "{field}"
[evolution]
generations = 2
population = 4
[generator]
steps = 2
[simulation]
voxel_mm = [6.0, 6.0, 6.6]
faults = "drop=0.03"
[record]
save_volumes = "both"
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    field = np.zeros((10, 10, 10), np.float32)
    field[3:7, 5:9, 3:7] = 30.0
    affine = np.array([[25.0, 0, 0, -112], [0, 25, 0, -112], [0, 0, 25, -112], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(field, affine), folder / "field.nii.gz")
    (folder / "session.toml").write_text(SETTINGS.format(field=folder / "field.nii.gz"))
    arguments = [str(folder / "session.toml"), "--speed", "max", "--out", str(folder / "out")]
    assert Warm(arguments, folder, folder / "printed").wait(200) == 0, (folder / "printed").read_text()
    (folder / "field.nii.gz").unlink()  # the run's folder has a copy
    return folder / "out"


def test_a_volume_without_an_echo_is_missing_and_the_session_is_the_same_when_it_is_computed_again(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = RecordedSession(session)
    lost = [r.index for r in recorded.records(VolumeRecord) if r.flags & VolumeFlag.MISSING]
    assert lost
    assert f"volume {lost[0]}: echo" in (session / "session.log").read_text()
    first = next(r.acquisition for r in recorded.records(VolumeRecord) if r.acquisition)
    assert first["EchoTimes"] == [0.012, 0.029, 0.046]
    assert main(["--rerun", str(session), "--out", str(tmp_path / "again")]) == 0
    printed = capsys.readouterr().out
    assert "changed: nothing" in printed
    assert "scores: identical" in printed
    assert (tmp_path / "again" / "motion.tsv").read_bytes() == (session / "motion.tsv").read_bytes()


def test_each_echo_is_exported_as_it_came_and_what_became_of_them_as_a_derivative(session: Path, tmp_path: Path) -> None:
    assert export([str(session), str(tmp_path / "bids")]) == 0
    saved = {int(path.name[7:12]): np.asanyarray(nibabel.load(path).dataobj) for path in (session / "volumes").glob("*.nii.gz")}
    for echo in (1, 2, 3):
        (path,) = (tmp_path / "bids").glob(f"sub-*/ses-*/func/*_echo-{echo}_bold.nii.gz")
        series = np.asanyarray(nibabel.load(path).dataobj)
        assert all(np.array_equal(series[..., index], volume[..., echo - 1]) for index, volume in saved.items())
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["EchoTime"] == [0.012, 0.029, 0.046][echo - 1]
        assert "EchoTimes" not in sidecar
    assert not list((tmp_path / "bids").glob("sub-*/ses-*/func/*run-01_bold.nii.gz"))
    (made,) = (tmp_path / "bids" / "derivatives").rglob("*_desc-preproc_bold.json")
    said = json.loads(made.read_text())
    assert "echoes combined" in said["Description"]
    assert "distortion along phase encoding undone" in said["Description"]
    assert len(said["Sources"]) == 3
