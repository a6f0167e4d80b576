"""Model, evolution and painting: each check once where all is well, and once where it is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rtevo.errors import ConfigError, ModelError
from rtevo.generate import TINY_LATENT_SPACE, TINY_UNCLIP
from rtevo.generate.check import Trial
from rtevo.preflight import painting
from rtevo.preflight.findings import Known

from .conftest import verdicts

Make = Callable[..., Known]


def trial(times_s: tuple[float, ...]) -> Trial:
    return Trial("eager, cuda", 1.0, times_s, np.zeros((2, 2, 3), np.uint8), 1.0, None)


def test_models(known: Make, tmp_path: Path) -> None:
    state = known(embedding_size=None, image_size=None)
    assert verdicts(list(painting.model(state))) == {"model": "pass"}
    assert (state.embedding_size, state.image_size) == (64, (64, 64))
    copied = Path(shutil.copytree(TINY_UNCLIP, tmp_path / "model"))
    tables = {"generator": {"unclip_model_path": str(copied)}, "evolution": {"pca": str(TINY_LATENT_SPACE)}}
    (found,) = painting.model(known(tables))
    assert (found.verdict, "SHA256SUMS" in found.to_do) == ("warn", True)
    (copied / "unet" / "config.json").unlink()
    with pytest.raises(ModelError):
        list(painting.model(known(tables)))


def test_the_built_in_model_is_none_for_a_participant(known: Make, decoder_folder: Callable[..., Path], tmp_path: Path) -> None:
    tables = {"acquisition": {"source": "watch", "folder": str(tmp_path), "tr_s": 2}, "decoder": {"folder": str(decoder_folder())}}
    (found,) = painting.model(known(tables))
    assert (found.verdict, "emoji only" in found.found) == ("warn", True)


def test_evolution(known: Make) -> None:
    (found,) = painting.course(known())
    assert (found.verdict, found.figures["images"]) == ("pass", 35)
    with pytest.raises(ConfigError, match="latent_size"):
        list(painting.course(known({"evolution": {"latent_size": 5000}})))


def test_a_blinded_condition_is_not_told(known: Make, tmp_path: Path) -> None:
    from rtevo.session.course import scramble

    key = tmp_path / "key.tsv"
    key.write_text(f"participant\tsession\tcode\nsim\t01\t{scramble('sham', 'sim', '01')}\n")
    tables = {"session": {"condition": "blinded"}, "evolution": {"blinding_key": str(key)}}
    (found,) = painting.course(known(tables))
    assert "condition blinded" in found.found
    assert "sham" not in repr(found)
    key.write_text("participant\tsession\tcode\n")
    with pytest.raises(ConfigError, match="expected a line for participant 'sim'"):
        list(painting.course(known(tables)))


def test_pictures_are_painted_and_timed(known: Make) -> None:
    found = list(painting.painting(known({"generator": {"steps": 1, "devices": ["cpu"]}, "presentation": {"image_s": 300}})))
    assert verdicts(found) == {"painting": "pass"}
    assert 0 < found[0].figures["each_s"] < 300
    with pytest.raises(ModelError, match="expected a CUDA device"):
        list(painting.painting(known({"generator": {"devices": ["cuda:63"]}})))


@pytest.mark.parametrize(
    ("times_s", "devices", "speed", "verdict"),
    [
        ((1.0, 2.0, 3.0), 1, 1.0, "pass"),
        ((5.0, 6.0, 7.0), 1, 1.0, "warn"),  # the first comes late
        ((3.5, 7.0, 10.5), 1, 1.0, "warn"),  # hardly any time to spare
        ((4.5, 9.0, 13.5), 1, 1.0, "fail"),
        ((3.9, 8.4, 12.9), 2, 1.0, "pass"),  # two devices take turns
        ((1.0, 2.0, 3.0), 1, 10.0, "fail"),
        ((50.0, 100.0), 1, 0.0, "pass"),  # time waits
    ],
)
def test_pace_against_the_cadence(known: Make, times_s: tuple[float, ...], devices: int, speed: float, verdict: str) -> None:
    state = known({"generator": {"devices": ["cpu"] * devices}, "session": {"speed": speed}})
    assert verdicts([painting.pace(state, trial(times_s), "painting")]) == {"painting": verdict}


@pytest.mark.parametrize(("free", "verdict"), [(20 << 30, "pass"), (500 << 20, "warn"), (50 << 20, "fail")])
def test_memory_of_a_gpu(free: int, verdict: str) -> None:
    assert verdicts([painting.room(free, 24 << 30, "GPU memory")]) == {"GPU memory": verdict}
