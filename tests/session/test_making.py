"""Volumes of several echoes, and distorted ones, on their way to scores: in this process, without a scanner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from rtevo.config import Config, build
from rtevo.decode import Decoder
from rtevo.errors import ConfigError, DataError, DecoderError
from rtevo.realign import first_echo
from rtevo.record import taken_over
from rtevo.record.making import check_maps, keep_maps, making_of
from rtevo.records import Decision, Grid, put_volume, volume_dtype, volume_of
from rtevo.session.aligning import Aligning
from rtevo.session.decoding import Decoding
from rtevo.session.placing import Hints
from rtevo.session.takeover import before_of, save_state
from rtevo.simulate import Simulation, make_decoder
from rtevo.simulate.echoes import ECHO_S, echo_times_s
from rtevo.simulate.scanner import Scanner

TR_S = 2.0
TE_S = echo_times_s(3)
SAID = {"EchoTimes": list(TE_S), "PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.03}
PLACED_MM = 0.6  # an eighth of a voxel: how well the decoder lies


class Nobody:
    """A participant who does not respond."""

    def response(self, times_s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.zeros_like(times_s), np.zeros_like(times_s)

    def area_responses(self, times_s: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return []


def settings(echo_times: tuple[float, ...] = TE_S) -> Simulation:
    return Simulation(tr_s=TR_S, shape=(48, 48, 21), voxel_size_mm=(5.0, 5.0, 5.5), motion_mm=0.4, echo_times_s=echo_times)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    made = make_decoder(settings(()), duration_s=60)
    return Decoder(made.grid, made.reference.astype(np.float32), made.mask, made.weights, "liking", {}, made.noise_sd)


@pytest.fixture(scope="module")
def run() -> tuple[list[NDArray[np.float32]], Grid]:
    """Volumes of three echoes of a head that moves, float32 (3, X, Y, Z)."""
    own = settings()
    scanner = Scanner(own.head(), own)
    return [scanner.acquire(index, Nobody()).astype(np.float32) for index in range(8)], own.grid  # type: ignore[arg-type]


def config(**acquisition: object) -> Config:
    return build({"acquisition": {"echoes": 3, **acquisition}})


ITK = """#Insight Transform File V1.0
#Transform 0
Transform: AffineTransform_double_3_3
Parameters: 1 0 0 0 1 0 0 0 1 0 0 0
FixedParameters: 0 0 0
"""


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Hints:
    """Where the decoder lies, which is seconds of computing less than finding it."""
    path = tmp_path_factory.mktemp("known") / "placement.txt"
    path.write_text(ITK)
    return Hints(file=path)


def decoding(decoder: Decoder, wanted: Config, hints: Hints, **options: object) -> Decoding:
    return Decoding(wanted, decoder, TR_S, 0, lambda _: Decision.ACCEPTED, hints, **options)  # type: ignore[arg-type]


def feed(work: Decoding, volumes: list[NDArray[np.float32]], grid: Grid, first: int = 0) -> list[NDArray[np.float32]]:
    """Give volumes in; returns those that are aligned."""
    found = []
    for index, volume in enumerate(volumes, first):
        aligned = work.align(index, volume, 0, grid, SAID if index == first else None)
        work.learn(aligned)
        if aligned.data is not None:
            found.append(aligned.data)
    return found


def test_echoes_are_combined_the_decoder_is_placed_on_them_and_another_part_goes_on_with_the_guide(
    decoder: Decoder, known: Hints, run: tuple[list[NDArray[np.float32]], Grid]
) -> None:
    volumes, grid = run
    work = decoding(decoder, config(), known)
    aligned = feed(work, volumes[:6], grid)
    assert len(aligned) == 6
    assert work.placed
    assert not work.news[-1].own_grid
    placement = work.news[-1].placement
    corners = np.array([[i, j, k, 1] for i in (10, 38) for j in (10, 38) for k in (5, 16)]) @ grid.affine.T
    assert placement.expected_error_mm < PLACED_MM
    assert np.linalg.norm((corners @ placement.matrix.T - corners)[:, :3], axis=1).max() < 3  # it lies nearly where it did
    low, high = aligned[-1][decoder.mask].mean(), first_echo(volumes[5])[decoder.mask].mean()
    assert low < high  # later echoes have less signal
    assert work.guide is not None
    assert work.guide[decoder.mask].mean() == pytest.approx(high, rel=0.02)  # motion is seen in the first echo
    before, guide = work.decoder, work.guide
    work.interrupt()
    feed(work, volumes[6:], grid, first=6)
    assert work.placed
    assert work.decoder is before
    assert work.guide is guide
    assert not work.renewed


def test_what_is_not_finite_in_any_echo_is_left_out(decoder: Decoder, known: Hints, run: tuple[list[NDArray[np.float32]], Grid]) -> None:
    volumes, grid = run
    work = decoding(decoder, config(), known)
    holed = volumes[1].copy()
    holed[2, 20:28, 20:28, 8:12] = np.nan
    assert len(feed(work, [volumes[0], holed, volumes[2]], grid)) == 2


def test_the_next_run_of_a_visit_goes_on_with_the_guide(
    decoder: Decoder, known: Hints, run: tuple[list[NDArray[np.float32]], Grid], tmp_path: Path
) -> None:
    volumes, grid = run
    work = decoding(decoder, config(), known)
    feed(work, volumes[:4], grid)
    guide = work.guide
    save_state(tmp_path, work, config(), decoder, TR_S)
    wanted = config()
    wanted = replace(wanted, decoder=replace(wanted.decoder, continue_from=str(tmp_path)))
    before = before_of(wanted, decoder, TR_S)
    assert before is not None
    with pytest.raises(ConfigError, match=r"found physio 'none', not \['pulse', 'retroicor', 'rvt', 'hrv'\]"):
        before_of(replace(wanted, physio=replace(wanted.physio, cardiac="simulated")), decoder, TR_S)
    after = decoding(decoder, wanted, known, before=before)
    feed(after, volumes[4:6], grid)
    assert after.placed  # with its first volume
    assert after.guide is not None
    np.testing.assert_array_equal(after.guide, guide)


def test_a_localizer_is_aligned_by_its_first_echo(run: tuple[list[NDArray[np.float32]], Grid]) -> None:
    volumes, grid = run
    wanted = config().acquisition
    aligning = Aligning(1, 1.0, lambda grid, said: making_of(wanted, grid, said or {}))
    found = [aligning.align(index, volume, 0, grid, SAID) for index, volume in enumerate(volumes[:4])]
    aligning.close()
    assert all(each.data is not None and each.data.shape == grid.shape for each in found)
    assert np.isfinite(found[-1].dvars_percent)


@pytest.mark.parametrize("echoes", [1, 3])
def test_a_field_of_one_voxel_moves_volumes_by_one_voxel(
    echoes: int, decoder: Decoder, known: Hints, run: tuple[list[NDArray[np.float32]], Grid], tmp_path: Path
) -> None:
    volumes, grid = [volume if echoes > 1 else volume[1] for volume in run[0][:2]], run[1]
    found = []
    for hertz in (0.0, 1 / SAID["TotalReadoutTime"]):  # type: ignore[operator]
        path = tmp_path / f"{hertz}.nii"
        nibabel.save(nibabel.Nifti1Image(np.full(grid.shape, hertz, np.float32), grid.affine), path)
        work = decoding(decoder, config(echoes=echoes, distortion=str(path)), known)
        found.append(feed(work, volumes, grid)[-1])
    slack = 0.02 * float(found[0].max())  # weights by T2* move by a voxel too
    np.testing.assert_allclose(found[1][:, 6:-6], found[0][:, 5:-7], atol=slack)  # against j, as phase is encoded along j-
    assert np.abs(found[1] - found[0]).max() > 10 * slack


def test_settings_and_headers_that_do_not_fit_are_named(run: tuple[list[NDArray[np.float32]], Grid], tmp_path: Path) -> None:
    grid = run[1]
    with pytest.raises(DataError, match=r"expected the times of 3 echoes in the headers, found \[0.01, 0.02\]"):
        making_of(config().acquisition, grid, {"EchoTimes": [0.01, 0.02]})
    path = tmp_path / "t2star.nii"
    nibabel.save(nibabel.Nifti1Image(np.full(grid.shape, 40, np.float32), grid.affine), path)
    with pytest.raises(DataError, match="expected T2\\* in s, found a median of 40: is it in ms"):
        check_maps(config(t2star=str(path)))
    nibabel.save(nibabel.Nifti1Image(np.full(grid.shape, 0.04, np.float32), grid.affine), path)
    check_maps(config(t2star=str(path)))
    (tmp_path / "out").mkdir()
    kept = keep_maps(config(t2star=str(path)), tmp_path / "out")
    assert kept.acquisition.t2star == str(tmp_path / "out" / "t2star.nii")
    assert Path(kept.acquisition.t2star).read_bytes() == path.read_bytes()


def test_the_runs_folder_has_a_copy_of_the_masks_of_nuisance_terms(tmp_path: Path) -> None:
    named, out = tmp_path / "ventricles.nii.gz", tmp_path / "out"
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), named)
    out.mkdir()
    kept = keep_maps(build({"decoder": {"nuisance": ["csf"], "csf_mask": str(named)}}), out)
    assert kept.decoder.csf_mask == str(out / "csf_mask.nii.gz")
    named.write_text("no image")
    with pytest.raises(DecoderError, match="expected a 3-D NIfTI file"):
        check_maps(build({"decoder": {"csf_mask": str(named)}}))
    (out / "session.toml").write_text('[decoder]\ncsf_mask = "/elsewhere/csf_mask.nii.gz"\n')
    assert taken_over(out) == {("decoder", "csf_mask"): str(out / "csf_mask.nii.gz")}


@pytest.mark.parametrize("echoes", [1, 2])
def test_a_slot_holds_all_echoes_of_a_volume_on_a_smaller_grid(echoes: int) -> None:
    grid = Grid((3, 4, 5), np.diag([3.0, 3.0, 3.0, 1.0]))
    slot = np.zeros(1, volume_dtype(100, echoes))[0]
    shape = grid.shape if echoes == 1 else (echoes, *grid.shape)
    data = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    put_volume(slot, data, grid)
    found, known = volume_of(slot)
    np.testing.assert_array_equal(found, data)
    assert known.difference(grid) == ""
    put_volume(slot, None, grid)
    assert not volume_of(slot)[0].any()


def test_later_echoes_of_the_simulated_scanner_are_darker_and_respond_more() -> None:
    own = settings()
    head = own.head()
    scanner = Scanner(head, own)
    echoes = scanner.acquire(0, Nobody()).astype(np.float64)  # type: ignore[arg-type]
    level = [float(echo[head.grey > 0.5].mean()) for echo in echoes]
    assert level[0] > level[1] > level[2]
    assert TE_S[1] < ECHO_S < TE_S[2]
