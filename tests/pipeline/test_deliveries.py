"""Sessions whose volumes come over the network, or wrongly."""

from __future__ import annotations

import datetime
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtevo.decode import write_decoder
from rtevo.errors import LinkError
from rtevo.record import LOG, AlignedRecord, Notice, RecordedSession
from rtevo.records import EventKind, VolumeFlag
from rtevo.run import main
from rtevo.simulate import Delivery, FaultyWriter, ParticipantLink, RealTime, Simulation, make_decoder, run_scanner
from rtevo.simulate.dicom import MosaicWriter
from rtevo.simulate.send import StoreSender
from tests.support.hostile import HOSTILE, Thrower

SMALL = ("--speed", "max", "--generations", "1", "--population", "2")


def write(folder: Path, text: str, name: str = "session.toml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def lost(done: Any) -> int:
    """Volumes that cannot have come; those after the last that came are not missed by anyone."""
    came = [("lost" not in row["fate"] and "cut" not in row["fate"]) or "copied" in row["fate"] for row in done.table("faults.tsv")]
    return came[: len(came) - came[::-1].index(True)].count(False)


@pytest.mark.slow
def test_a_script_pushes_a_whole_session(session: Callable[..., Any], tmp_path: Path) -> None:
    done = session(write(tmp_path, '[acquisition]\ndelivery = "push"\n'), *SMALL)
    assert done.returncode == 0, done.printed
    volumes = done.summary["volumes"]
    assert volumes["received"] == volumes["aligned"] > 15
    assert volumes["lost"] == 0
    assert done.summary["images"]["shown"] == 2
    assert "the run is 'rtevo_simulated_bold', which a script pushes (TR 0.867 s)" in (done.out / "session.log").read_text()


@pytest.mark.slow
def test_a_recorded_series_sent_wrongly_over_the_dicom_network(
    session: Callable[..., Any], scanner_data: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
    file = write(tmp_path, '[acquisition]\ndelivery = "dicom"\n[simulation]\nfaults = "drop=0.1, reorder=2, duplicate=0.2, stranger=0.1"\n')
    done = session(file, "--replay", f"{scanner_data('siemens-xa30-enhanced')}/dicom", *SMALL)
    assert done.returncode == 0, done.printed
    assert lost(done) == done.summary["volumes"]["lost"] > 0
    assert done.summary["volumes"]["received"] + done.summary["volumes"]["lost"] == 20
    log = (done.out / "session.log").read_text()
    assert "RTEVO receives DICOM at 127.0.0.1, port" in log
    assert "(Siemens enhanced, TR 1 s): it looks functional: echo-planar series" in log


@pytest.mark.slow
def test_a_rehearsal_of_what_goes_wrong_loses_what_was_lost(session: Callable[..., Any], tmp_path: Path) -> None:
    faults = "drop=0.1, duplicate=0.2, grow=0.3, truncate=0.1, rename=0.1, reorder=2, stranger=0.2, stall=0.05, stall_files=3"
    done = session(write(tmp_path, f'[simulation]\nfaults = "{faults}"\n'), *SMALL)
    assert done.returncode == 0, done.printed
    fates = {word for row in done.table("faults.tsv") for word in row["fate"].split("|")}
    assert {"lost", "cut", "copied", "grew"} <= fates
    assert lost(done) == done.summary["volumes"]["lost"] > 0


@pytest.mark.slow
def test_volumes_that_come_after_they_were_declared_missing(session: Callable[..., Any], tmp_path: Path) -> None:
    """They are kept once, and what was recorded is computed again to the last bit, and taken up where the log ends."""
    text = '[acquisition]\npatience_tr = 1.0\n[simulation]\nfaults = "reorder=3, stall=0.1, stall_files=3"\n'
    done = session(write(tmp_path, text), "--speed", "max", "--generations", "1", "--population", "4")
    assert done.returncode == 0, done.printed
    volumes = done.summary["volumes"]
    assert volumes["late"] > 0
    assert volumes["lost"] == 0
    indices = [int(row["volume"]) for row in done.table("motion.tsv")]
    assert indices == list(range(volumes["received"]))
    again = tmp_path / "again"
    assert main(["--rerun", str(done.out), "--out", str(again)]) == 0
    for name in ("trials.tsv", "motion.tsv", "latents.npz"):
        assert (again / name).read_bytes() == (done.out / name).read_bytes(), name
    lines = (done.out / LOG).read_bytes().splitlines(keepends=True)
    late = [r.seq for r in RecordedSession(done.out).records(AlignedRecord) if r.flags & VolumeFlag.LATE]
    (done.out / LOG).write_bytes(b"".join(lines[: late[0]]))  # its volume is recorded, its motion is not
    assert main(["--resume", str(done.out)]) == 0
    own = [r.index for r in RecordedSession(done.out).records(AlignedRecord) if r.flags & VolumeFlag.LATE]
    assert own.count(read_late(lines[late[0]])) == 1


def read_late(line: bytes) -> int:
    return int(json.loads(line.split(b" ", 1)[1])["index"])


@pytest.mark.slow
def test_a_scanner_that_falls_silent_is_an_alarm_and_images_are_not_shown_for_nothing(session: Callable[..., Any], tmp_path: Path) -> None:
    """Nobody attends it, so that it ends by itself, as failed; every image that was shown began before the alarm."""
    file = write(tmp_path, '[simulation]\nfaults = "silence_after=14"\n')
    done = session(file, "--speed", "max", "--generations", "2", "--population", "4")
    assert done.returncode == 1, done.printed
    assert "stage 'ingest' failed: no volume has come in for" in done.printed
    assert done.summary["status"] == "failed"
    assert done.summary["volumes"]["received"] == 14
    recorded = RecordedSession(done.out)
    [alarm] = [r for r in recorded.records(Notice) if r.level == "alarm"]
    assert 5.0 < recorded.clock.seconds(alarm.t_ns) - 14 * 0.867 <= 5.0 + 2 * 0.867
    onsets = [event.t_ns for event in recorded.events(EventKind.ONSET)]
    assert 2 <= len(onsets) < 8
    assert max(onsets) < alarm.t_ns + 5e9
    assert recorded.events(EventKind.PAUSE)[-1].t_ns > max(onsets)
    assert (done.out / "trials.tsv").exists()


def test_mistakes_of_deliveries_are_told_before_anything_starts(session: Callable[..., Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "decoder").mkdir()
        common = f'[acquisition]\nsource = "watch"\ntr_s = 1.0\nport = {port}\n'
        end = '[decoder]\nfolder = "decoder"\n'
        for text, message in (
            (common + 'delivery = "push"\n' + end, f"[acquisition] delivery = 'push': 127.0.0.1, port {port}: cannot listen there"),
            (common + 'delivery = "dicom"\naddress = "0.0.0.0"\n' + end, "peers: expected at least one for address '0.0.0.0'"),
            (common + 'delivery = "push"\npeers = ["SCANNER"]\n' + end, "peers: expected @ADDRESS for delivery 'push', got 'SCANNER'"),
            ('[simulation]\nfaults = "drop=2, sped=1"\n', "[simulation] faults: expected one of drop"),
            (
                '[acquisition]\ndelivery = "dicom"\n[simulation]\nfaults = "grow=1"\n',
                "[simulation] faults grow: expected 0 where files are sent",
            ),
        ):
            done = session(write(tmp_path, text))
            assert done.returncode == 2, done.printed
            assert message in done.printed
            assert not (tmp_path / "out").exists()


SETTINGS = Simulation(tr_s=1.0, shape=(32, 32, 16), voxel_size_mm=(6.0, 6.0, 6.0))


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def watch(tmp_path: Path, port: int) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Return a function that starts a session with everything outside, and a headless presenter for it."""
    made = make_decoder(SETTINGS)
    write_decoder(tmp_path / "decoder", "liking", made.reference, made.mask, made.weights, made.grid.affine, made.settings)
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    processes: list[subprocess.Popen[str]] = []

    def start(acquisition: str) -> subprocess.Popen[str]:
        file = write(
            tmp_path,
            f'[acquisition]\nsource = "watch"\ntr_s = 1.0\nport = {port}\n{acquisition}\n[decoder]\nfolder = "decoder"\ndelay_s = 2.0\n'
            f'[bridge]\nbind = "{bind}"\n[evolution]\ngenerations = 1\npopulation = 2\n'
            "[presentation]\nbaseline_s = 0.5\nimage_s = 1.0\nwashout_s = 0.5\n",
        )
        run = [sys.executable, "-m", "rtevo.run", "--out", str(tmp_path / "out"), file]
        process = subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        show = [sys.executable, "-m", "presenter", "--connect", bind, "--headless", "--participant", f"ipc://{tmp_path}/eyes"]
        processes.extend((process, subprocess.Popen(show, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True)))
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def answers(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_scanner_outside_sends_to_a_session(watch: Callable[[str], subprocess.Popen[str]], port: int, tmp_path: Path) -> None:
    pynetdicom = pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
    kept = tmp_path / "kept"
    before = MosaicWriter(kept / "yesterday", SETTINGS.grid, 1.0, description="bold", started=datetime.datetime(2026, 1, 2))
    for index in range(3):
        before.write(index, np.zeros(SETTINGS.shape, np.int16))
    process = watch('delivery = "dicom"\npeers = ["CONSOLE@127.0.0.1"]\nfolder = "kept"\nseries = "bold"')
    with ParticipantLink(f"ipc://{tmp_path}/eyes") as link, StoreSender("127.0.0.1", port, "RTEVO", "CONSOLE") as sender:
        while not answers(port):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        stranger = pynetdicom.AE(ae_title="STRANGER")
        stranger.add_requested_context("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2.1")
        assert stranger.associate("127.0.0.1", port, ae_title="RTEVO").is_rejected
        delivery = Delivery(sender.send, "", seed=1)
        writer = FaultyWriter(MosaicWriter(Path(), SETTINGS.grid, 1.0, description="bold", series_number=2), delivery)
        printed: list[str] = []
        reading = threading.Thread(target=lambda: printed.extend(process.communicate()))
        reading.start()
        with suppress(LinkError, RuntimeError):  # the session has ended, and with it the receiver
            run_scanner(SETTINGS, writer, link, RealTime(stop=lambda: process.poll() is not None), tmp_path, patience_s=200)
        reading.join(120)
    text = "".join(printed)
    assert process.returncode == 0, text
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert 4 <= summary["volumes"]["received"] <= len(delivery.fates)
    assert summary["volumes"]["lost"] == 0
    assert summary["images"]["shown"] == 2
    log = (tmp_path / "out" / "session.log").read_text()
    assert "kept holds from before the session unused series: series 1 'bold'" in log
    assert "refused a sender that is not among the allowed peers: STRANGER@127.0.0.1" in log
    assert "the run is series 2 'bold' (Siemens mosaic, TR 1 s): it is 'bold'" in log
    assert len(list(kept.rglob("*.dcm"))) >= 3 + summary["volumes"]["received"]


@pytest.mark.slow
def test_late_files_of_the_run_before_do_not_become_the_run(watch: Callable[[str], subprocess.Popen[str]], tmp_path: Path) -> None:
    """They come between the start and the trigger, and after it, under the name that is asked for."""
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    before = MosaicWriter(incoming, SETTINGS.grid, 1.0, description="bold", started=datetime.datetime(2026, 1, 2))
    process = watch(f'folder = "{incoming}"\nseries = "bold"')
    log = tmp_path / "out" / "session.log"
    while not (log.exists() and " has come" in log.read_text()):  # what was there before has been passed over by then
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    reading = threading.Thread(target=process.communicate)
    reading.start()
    with ParticipantLink(f"ipc://{tmp_path}/eyes") as link:
        delivery = Delivery(incoming, "", seed=1)
        writer = FaultyWriter(MosaicWriter(incoming, SETTINGS.grid, 1.0, description="bold", series_number=2), delivery)
        for index in (40, 41, 42):
            before.write(index, np.zeros(SETTINGS.shape, np.int16))
        with suppress(LinkError, RuntimeError):
            run_scanner(SETTINGS, writer, link, RealTime(stop=lambda: process.poll() is not None), tmp_path, patience_s=200)
    reading.join(120)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (process.returncode, summary["status"], summary["images"]["shown"]) == (0, "completed", 2)
    assert 4 <= summary["volumes"]["received"] <= len(delivery.fates)
    assert summary["volumes"]["lost"] == 0
    told = log.read_text()
    assert "series 1 'bold': comes before the trigger; its volumes are held" in told
    assert "series 1 'bold': 3 volumes from 40 on came too early for this trigger" in told
    assert "the run is series 2 'bold'" in told


@pytest.mark.slow
def test_a_session_whose_folder_is_thrown_full_of_hostile_files_loses_nothing(
    watch: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    thrower = Thrower(incoming, seed=1)
    process = watch(f'folder = "{incoming}"\nseries = "bold"')
    log = tmp_path / "out" / "session.log"
    while not (log.exists() and " has come" in log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    thrower.start()
    reading = threading.Thread(target=process.communicate)
    reading.start()
    with ParticipantLink(f"ipc://{tmp_path}/eyes") as link:
        delivery = Delivery(incoming, "", seed=1)
        writer = FaultyWriter(MosaicWriter(incoming, SETTINGS.grid, 1.0, description="bold", series_number=2), delivery)
        with suppress(LinkError, RuntimeError):
            run_scanner(SETTINGS, writer, link, RealTime(stop=lambda: process.poll() is not None), tmp_path, patience_s=200)
    reading.join(120)
    thrower.finish()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (process.returncode, summary["status"], summary["images"]["shown"]) == (0, "completed", 2)
    assert 4 <= summary["volumes"]["received"] <= len(delivery.fates)
    assert summary["volumes"]["lost"] == 0
    assert thrower.thrown > len(HOSTILE)
    told = log.read_text()
    assert "neither a file nor a folder; skipped" in told
    assert "a link out of the watched folder (/dev/zero); not followed" in told
    assert all(line.isprintable() for line in told.splitlines())
