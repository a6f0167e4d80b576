"""Live maps show what the saved volumes hold: known signal and noise, the decoder where it lies, what a response adds, left and right."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from rtevo.console import markup
from rtevo.console.maps import FEWEST, LiveMaps
from rtevo.decode import Decoder
from rtevo.record import record_of, volume_path
from rtevo.records import Decision, Grid, VolumeFlag

SHAPE, TR_S = (12, 14, 10), 2.0
AFFINE = np.array([[-3.0, 0, 0, 18], [0, 3, 0, -20], [0, 0, 4, -18], [0, 0, 0, 1]])  # the first axis runs to the left
AT = (3, 8, 6)
SIGNAL, NOISE = 1000.0, 10.0
TSNR_TOLERANCE = 0.35  # of 40 volumes: the standard deviation of one, 11%, three times


def decoder() -> Decoder:
    weights = np.zeros(SHAPE, np.float32)
    weights[AT], weights[AT[0] + 4, AT[1], AT[2]] = 2.0, -2.0
    mask = np.ones(SHAPE, bool)
    return Decoder(Grid(SHAPE, AFFINE), np.full(SHAPE, SIGNAL, np.float32), mask, weights, "map", {}, np.full(SHAPE, NOISE, np.float32))


def write(out: Path, n: int, kind: str = "volumes", response: float = 0.0) -> None:
    """Save volumes; the last five have a response at the decoder's strongest voxel."""
    rng = np.random.default_rng(0)
    (out / kind).mkdir(parents=True)
    for index in range(n):
        data = SIGNAL + NOISE * rng.standard_normal(SHAPE)
        data[..., 0] = rng.uniform(0, 50, SHAPE[:2])  # air
        data[AT] += response * (index >= n - 5)
        nibabel.save(nibabel.Nifti1Image(data.astype(np.float32), AFFINE), volume_path(out, index, kind))


def grid() -> Any:
    return record_of({"type": "grid", "part": 0, "shape": list(SHAPE), "affine": AFFINE.tolist()})


def placed(matrix: np.ndarray | None = None, decision: Decision = Decision.ACCEPTED) -> Any:
    return record_of({"type": "placements", "decision": int(decision), "matrix": np.eye(4).tolist() if matrix is None else matrix.tolist()})


def aligned(index: int, flags: int = 0, motion: tuple[float, ...] = (0.0,) * 6) -> Any:
    return record_of({"type": "aligned", "index": index, "flags": flags, "motion": list(motion)})


def followed(out: Path, n: int, kind: str = "raw", hidden: bool = False, **how: Any) -> LiveMaps:
    """The maps of a session after so many volumes."""
    maps = LiveMaps(out, kind, how.get("decoder", decoder()), TR_S, hidden)
    for record in (grid(), placed(how.get("matrix")), *(aligned(k, motion=how.get("motion", (0.0,) * 6)) for k in range(n))):
        maps.take(record)
    while maps.step():
        pass
    return maps


def test_maps_have_the_signal_to_noise_of_the_volumes_and_the_contribution_of_a_response(tmp_path: Path) -> None:
    write(tmp_path, 40, response=30.0)
    maps = followed(tmp_path, 40)
    assert (maps.volumes, maps.kinds, maps.shown) == (40, ["tsnr", "decoder", "contribution"], FEWEST)  # not drawn again so soon
    sagittal, coronal, axial = maps.maps()["tsnr"]
    assert np.nanmedian(sagittal) == pytest.approx(SIGNAL / NOISE, rel=TSNR_TOLERANCE)
    assert np.isnan(coronal[:, 0]).all()  # air
    assert axial.shape == (12, 14)
    weights = maps.maps()["decoder"][2]
    here = (SHAPE[0] - 1 - AT[0], AT[1])  # from left to right
    assert weights[here] == 2.0
    assert weights[here[0] - 4, here[1]] == -2.0
    contribution = maps.maps()["contribution"][2]
    assert np.nanargmax(contribution) == np.ravel_multi_index(here, (12, 14))
    assert contribution[here] > 2.0


def test_the_picture_has_left_on_the_left_and_the_maps_colours(tmp_path: Path) -> None:
    write(tmp_path, FEWEST)
    maps = followed(tmp_path, FEWEST)
    shown = maps.picture("decoder")
    assert shown is not None
    with Image.open(io.BytesIO(shown)) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    warm, cold = (np.argwhere(way * (pixels[..., 0] - pixels[..., 2]) > 60)[:, 1] for way in (1, -1))
    assert len(warm)
    assert len(cold)
    axial = pixels.shape[1] * 2 // 3
    assert warm[warm > axial].mean() > cold[cold > axial].mean()  # the negative voxel lies four to the left
    assert maps.picture("nothing") is None


def test_the_decoder_is_drawn_where_it_was_placed_and_where_the_head_lay(tmp_path: Path) -> None:
    write(tmp_path, FEWEST)
    write(tmp_path, FEWEST, "aligned")
    moved = np.eye(4)
    moved[:3, 3] = 3.0, 0.0, 4.0  # to the right by one voxel, up by one
    found = followed(tmp_path, FEWEST, matrix=moved).maps()["decoder"][2]
    assert found[SHAPE[0] - 1 - AT[0] + 1, AT[1]] == pytest.approx(2.0)
    raw = followed(tmp_path, FEWEST, motion=(3.0, 0.0, 0.0, 0.0, 0.0, 0.0)).maps()["decoder"][2]
    assert raw[SHAPE[0] - 1 - AT[0] + 1, AT[1]] == pytest.approx(2.0)
    realigned = followed(tmp_path, FEWEST, kind="both", motion=(3.0, 0.0, 0.0, 0.0, 0.0, 0.0)).maps()["decoder"][2]
    assert realigned[SHAPE[0] - 1 - AT[0], AT[1]] == pytest.approx(2.0)


def test_what_is_hidden_missing_or_not_yet_placed_is_not_drawn(tmp_path: Path) -> None:
    write(tmp_path, FEWEST + 2)
    assert followed(tmp_path, FEWEST, hidden=True).kinds == ["tsnr", "decoder"]
    assert followed(tmp_path, FEWEST, decoder=None).kinds == ["tsnr"]
    assert followed(tmp_path, FEWEST - 1).kinds == []
    none = followed(tmp_path, FEWEST, kind="none")
    assert "saves no volumes" in none.problem
    waits = LiveMaps(tmp_path, "raw", decoder(), TR_S, False)
    for record in (grid(), placed(decision=Decision.PENDING), aligned(0)):
        waits.take(record)
    assert not waits.step()
    waits.take(placed())
    for record in (aligned(1, int(VolumeFlag.SPIKE)), aligned(99), aligned(2)):  # the second was not saved
        waits.take(record)
    assert (waits.step(), waits.step(), waits.step()) == (True, True, False)
    assert waits.volumes == 1
    waits.take(grid())  # another part of the session
    assert waits.volumes == 0


def test_the_page_shows_the_maps_and_says_why_there_are_none(tmp_path: Path) -> None:
    write(tmp_path, FEWEST)

    def words(maps: LiveMaps, blinded: bool = False) -> str:
        desk: Any = SimpleNamespace(maps=maps, view=SimpleNamespace(blinded=blinded))
        return markup.maps(desk)

    shown = words(followed(tmp_path, FEWEST))
    assert shown.count('<img src="map/') == 3
    assert f"{FEWEST} volumes" in shown
    hidden = words(followed(tmp_path, FEWEST, hidden=True), blinded=True)
    assert "contribution?" not in hidden
    assert "it would reveal the score" in hidden
    assert "saves no volumes" in words(followed(tmp_path, FEWEST, kind="none"))
    assert f"After {FEWEST} volumes" in words(followed(tmp_path, 3))
