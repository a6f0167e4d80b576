"""The pictures of a localizer, looked at before the participant lies down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rtevo.errors import ConfigError
from rtevo.preflight import CHECKS, pictures
from rtevo.preflight.findings import Known
from rtevo.preflight.machine import needed

Make = Callable[..., Known]
TASK = {"session": {"task": "localizer"}}


def test_what_is_shown_and_how_long_it_takes(known: Make) -> None:
    state = known(TASK, tr_s=2.0, grid=None, image_size=None, embedding_size=None)
    (found,) = pictures.pictures(state)
    assert found.verdict == "pass"
    for part in (
        "animal 12, face 12, flag 12, food 12, 64 x 64 px",
        "16 blocks of 10 pictures, one-back, 16 targets",
        "for 163 volumes of 2 s",
    ):
        assert part in found.found
    assert found.figures["pictures"] == 48
    assert state.session_s == found.figures["length_s"]
    assert state.images == 160
    assert needed(state)[1] > 160 * 3 * 64 * 64


def test_a_folder_that_cannot_be_shown(known: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two or more categories"):
        list(pictures.pictures(known({**TASK, "localizer": {"folder": str(tmp_path)}}, tr_s=2.0)))


def test_a_localizer_needs_nothing_that_evolution_does() -> None:
    of = {check.name: check.of for check in CHECKS}
    own = [name for name, task in of.items() if task in ("", "localizer")]
    common = ["leftovers", "volumes", "delivery", "pictures", "console", "disk", "shared memory", "pulse and respiration", "presenter"]
    assert own == common
