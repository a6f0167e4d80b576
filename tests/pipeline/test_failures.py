"""What goes wrong ends in one clear message, with everything saved and nothing left behind."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rtevo.record import RecordedSession
from rtevo.records import EventKind

from .conftest import Finished, Running, command, quickly

STAGES = ("ingest", "generate", "record", "presenter")  # that read nothing, that read, that observe, that are outside otherwise
QUICK = ("--generations", "2", "--population", "3")
Start = Callable[..., tuple[Running, Path]]


def own_rings(out: Path) -> set[str]:
    """Rings of the session in `out` that are still there."""
    name = re.search(r"session (\w+)", (out / "session.log").read_text())
    assert name is not None
    return {entry for entry in os.listdir("/dev/shm") if name.group(1) in entry}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_the_session(running: Start, stage: str) -> None:
    process, out = running(*QUICK)
    assert own_rings(out)
    pid = re.search(rf"stage {stage} is process (\d+)", (out / "session.log").read_text())
    assert pid is not None
    os.kill(int(pid.group(1)), signal.SIGKILL)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"stage '{stage}' failed: was killed by signal 9 (SIGKILL)" in printed
    assert "the data recorded until then are in" in printed
    assert (out / "summary.json").exists()
    assert not own_rings(out)


@pytest.mark.slow
def test_a_killed_bridge_is_started_again_and_the_session_goes_on(running: Start) -> None:
    """Killed twice: before the trigger or just after it, and amid the images. Every event is there once, every image was shown once."""
    process, out = running("--generations", "2", "--population", "3", "--speed", "4")
    assert process.stderr is not None
    for kill in (1, 2):
        pids = re.findall(r"stage bridge is process (\d+)", (out / "session.log").read_text())
        assert len(pids) == kill
        os.kill(int(pids[-1]), signal.SIGKILL)
        for line in process.stderr:
            if "has come" in line:
                break
        shown = 0
        while kill == 1 and shown < 2:  # some images later
            time.sleep(0.02)
            shown = len(RecordedSession(out).events(EventKind.ONSET))
    _, printed = process.communicate(timeout=100)
    assert process.returncode == 0, printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert sum("was killed by signal 9 (SIGKILL) and was restarted" in warning for warning in summary["warnings"]) == 2
    recorded = RecordedSession(out)
    images = [(generation, candidate) for generation in range(2) for candidate in range(3)]
    for kind in (EventKind.ONSET, EventKind.OFFSET):
        assert [(e.generation, e.candidate) for e in recorded.events(kind)] == images
    assert len(recorded.events(EventKind.TRIGGER)) == len(recorded.events(EventKind.END)) == 1
    assert not own_rings(out)


@pytest.mark.slow
def test_control_c_ends_cleanly(running: Start) -> None:
    process, out = running(*QUICK, warm=False)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert '"status": "stopped"' in (out / "summary.json").read_text()
    assert not own_rings(out)


OUTSIDE = '[bridge]\nbind = "tcp://127.0.0.1:*"\n[simulation]\nparticipant = "tcp://127.0.0.1:*"\n'  # nobody will come


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["starting: waiting", "queues"])  # before all are ready; for the presenter
def test_a_signal_to_the_group_ends_a_session_as_control_c_does(tmp_path: Path, phase: str) -> None:
    (tmp_path / "outside.toml").write_text(OUTSIDE)
    out = tmp_path / "out"
    words = command(out, *quickly(("outside.toml", *QUICK), tmp_path))
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True) as process:
        assert process.stderr is not None
        assert any(phase in line for line in process.stderr)
        os.killpg(process.pid, signal.SIGTERM)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("stopped", "")
    assert (out / "trials.tsv").exists()
    assert not own_rings(out)


@pytest.mark.slow
def test_the_tables_are_there_before_the_rings_go(tmp_path: Path) -> None:
    main = "import sys; from rtevo import run; from rtevo.supervisor import Supervisor; left = Supervisor.__exit__; "
    main += "Supervisor.__exit__ = lambda self, *e: (print(*sorted(p.name for p in self.plan.out.iterdir())), left(self, *e))[1]; "
    words = ["--out", "out", "--speed", "max", "--generations", "1", "--population", "2", *quickly((), tmp_path)]
    words = [sys.executable, "-c", main + f"sys.exit(run.main({words}))"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"latents.npz", "motion.tsv", "summary.json", "trials.tsv"} <= set(done.stdout.splitlines()[0].split())


@pytest.mark.slow
def test_a_signal_before_the_session_begins_leaves_nothing(tmp_path: Path) -> None:
    main = "import os, signal, sys; from rtevo import run; from rtevo.session import prepare; "
    main += "prepare.check_space = lambda *_: os.kill(os.getpid(), signal.SIGTERM); "
    words = [sys.executable, "-c", main + "sys.exit(run.main(['--out', 'out']))"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "rtevo: stopped before the session began: nothing was recorded\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_signal_after_the_session_was_completed_changes_nothing(tmp_path: Path) -> None:
    """Neither while the last words are printed, nor while the interpreter ends."""
    main = "import atexit, os, signal, sys; from rtevo import console, run; "
    main += "stop = lambda *_: os.kill(os.getpid(), signal.SIGTERM); atexit.register(stop); console.closing_words = stop; "
    options = quickly(("--speed", "max", "--generations", "1", "--population", "2", "--out", "out"), tmp_path)
    words = [sys.executable, "-c", main + "sys.exit(run.main())", *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_a_killed_supervisor_leaves_no_process_and_its_rings_go_with_the_next_start(running: Start, session: Callable[..., object]) -> None:
    process, out = running(*QUICK, warm=False)
    assert own_rings(out)
    process.kill()
    process.communicate()  # ends only when every stage has closed its end of the pipe, that is, has left
    done = session("--speed", "max", "--generations", "1", "--population", "2", name="next")
    assert done.returncode == 0, done.printed
    assert not own_rings(out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "rtevo-test", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk needs root (mount)")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_tables_of_what_there_is(session: Callable[..., Finished], small_disk: Path) -> None:
    done = session("--speed", "max", "--generations", "20", "--population", "3", name="disk/out")
    assert done.returncode == 1
    assert "Traceback" not in done.printed
    [sentence] = [line for line in done.printed.splitlines() if line.startswith("rtevo: stage")]
    assert f"failed: the disk is full ({small_disk}/out): make room there" in sentence
    assert done.summary["status"] == "failed"
    received = done.summary["volumes"]["received"]
    assert received == len(list((done.out / "volumes").glob("volume-*.nii.gz"))) > 10
    assert len(done.table("motion.tsv")) in (received, received + 1)
    assert sum(trial["onset"] != "n/a" for trial in done.table("trials.tsv")) == done.summary["images"]["shown"]


@pytest.fixture
def refused(session: Callable[..., object], tmp_path: Path) -> Callable[..., str]:
    """Return a function that expects a session to be refused before anything starts, and gives what it printed."""

    def run(*options: str) -> str:
        done = session(*options)
        assert done.returncode == 2, done.printed
        assert "Traceback" not in done.printed
        assert done.printed.startswith("rtevo: ")
        return str(done.printed)

    return run


def test_an_empty_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in refused("--replay", str(tmp_path / "empty"))


def test_a_folder_with_nothing_but_a_truncated_file(
    refused: Callable[..., str], tmp_path: Path, scanner_data: Callable[[str], Path]
) -> None:
    (tmp_path / "cut").mkdir()
    shutil.copy(scanner_data("siemens-mosaic") / "truncated.dcm", tmp_path / "cut")
    assert "truncated.dcm" in refused("--replay", str(tmp_path / "cut"))


def test_a_missing_model_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "session.toml"
    file.write_text('[generator]\nunclip_model_path = "nowhere"\n')
    assert "unclip_model_path: expected an existing folder" in refused(str(file))


def test_three_mistakes_are_three_lines(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "session.toml"
    file.write_text('[session]\ncondition = "x"\n[evolution]\npopulaton = 3\n[acquisition]\ntr_s = -1\n')
    assert len(refused(str(file)).splitlines()) == 3


def test_an_existing_output_folder_is_never_written_to(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert "rtevo overwrites nothing" in refused()
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.xdist_group("dask")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:distributed")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the worker that is killed here
def test_a_session_on_two_dask_workers_survives_a_killed_one(running: Start, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster:
        address = cluster.scheduler_address.partition("://")[2]
        file = tmp_path / "dask.toml"
        file.write_text(f'[generator]\ndevices = ["dask://{address}"]\nanswer_s = 10\n')
        process, out = running(str(file), "--generations", "1", "--population", "4", "--speed", "max")
        while len(RecordedSession(out).events(EventKind.ONSET)) < 2 and process.poll() is None:
            time.sleep(0.02)
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        _, printed = process.communicate(timeout=150)
    assert process.returncode == 0, printed
    recorded, summary = RecordedSession(out), json.loads((out / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["generator"].startswith(f"dask, 2 workers of {address}: eager, cpu")
    assert summary["images"]["times_held"] == 0
    images = [(0, candidate) for candidate in range(4)]
    assert [(e.generation, e.candidate) for e in recorded.events(EventKind.ONSET)] == images
    onsets = [e.t_ns for e in recorded.events(EventKind.ONSET)]
    assert {b - a for a, b in itertools.pairwise(onsets)} == {4_000_000_000}
