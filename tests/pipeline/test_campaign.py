"""Sessions of the campaign of faults (`bench.campaign`), some of its kinds, checked against the journal of what was sent."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from bench.campaign.check import Outcome, check
from bench.campaign.play import Played, play, small_disks
from bench.campaign.scenarios import Scenario, scenario
from bench.campaign.series import decoder
from rtevo.record import volume_path

SEEDS = {"duplicates": 5, "torn": 5, "restarted": 2, "late": 10, "disk": 7, "mixed": 14}  # mixed: all that can go together


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the decoder of the simulated participant."""
    folder = tmp_path_factory.mktemp("decoder")
    decoder(folder)
    return folder


@pytest.fixture
def played(decoded: Path) -> Iterator[Callable[[str, int], tuple[Scenario, Played]]]:
    """Return a function that plays the session of a kind and a seed, in a folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="rtevo-") as folder:

        def run(kind: str, seed: int) -> tuple[Scenario, Played]:
            planned = scenario(kind, seed)
            if planned.disk_kb and not small_disks():
                pytest.skip("a small disk needs root (mount)")
            return planned, play(planned, Path(folder), decoded)

        yield run


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"
)  # pynetdicom's, where the session has just ended
@pytest.mark.parametrize("kind", [kind for kind in SEEDS if kind != "duplicates"])
def test_a_session_of_the_campaign_adds_up(played: Callable[[str, int], tuple[Scenario, Played]], kind: str) -> None:
    outcome = check(*played(kind, SEEDS[kind]))
    assert outcome.problems == [], f"python -m bench.campaign --kind {kind} --seed {SEEDS[kind]} --keep"
    assert outcome.sent == outcome.received + outcome.doubtful + outcome.missing + outcome.refused > 0


@pytest.mark.slow
def test_what_the_campaign_would_not_forgive(played: Callable[[str, int], tuple[Scenario, Played]]) -> None:
    """A session adds up; and no more where a voxel, a line of the journal, a row or a picture is another."""
    planned, done = played("duplicates", SEEDS["duplicates"])
    outcome = check(planned, done)
    assert outcome.problems == []
    assert outcome.sent == outcome.received > 10

    def problems(path: Path, changed: Callable[[bytes], bytes]) -> list[str]:
        before = path.read_bytes()
        path.write_bytes(changed(before))
        found: Outcome = check(planned, done)
        path.write_bytes(before)
        return found.problems

    def one_voxel(contents: bytes) -> bytes:
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(contents))
        data = np.asarray(image.dataobj).copy()
        data[5, 5, 5] += 1
        return gzip.compress(nibabel.Nifti1Image(data, image.affine).to_bytes())

    volume = volume_path(done.out, 4)
    assert any("volume 4 of part 1: its pixels are not those" in p for p in problems(volume, one_voxel))
    assert any(f"{volume.name} cannot be read" in p for p in problems(volume, lambda contents: contents[:-100]))
    journal = done.place / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    without = b"".join(line for line in lines if json.loads(line).get("volume") != 7)
    assert any("volume 7 of part 1 was received, but never sent" in p for p in problems(journal, lambda _: without))
    early = next(line for line in lines if json.loads(line).get("whole"))
    more = early.replace(b'"volume": 0', b'"volume": 200')
    assert any("volume 200 was sent whole" in p for p in problems(journal, lambda contents: contents + more))
    unseen = b"".join(line for line in lines if json.loads(line)["did"] != "seen")
    assert any("0 were seen" in p for p in problems(journal, lambda _: unseen))
    assert any("motion.tsv: no row" in p for p in problems(done.out / "motion.tsv", lambda rows: rows[: rows[:-1].rindex(b"\n") + 1]))
    assert any("summary" in p for p in problems(done.out / "summary.json", lambda text: text.replace(b'"received": ', b'"received": 1')))
