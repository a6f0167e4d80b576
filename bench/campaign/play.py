"""Runs a session of the campaign: the command, the presenter, the sender, and who sends signals."""

from __future__ import annotations

import multiprocessing as mp
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.campaign.scenarios import Scenario, Signal, clean_run
from bench.campaign.sender import Journal, Sender, Step, Watched
from bench.campaign.series import TR_S
from rtevo.errors import LinkError
from rtevo.record import LOG, Notice, RecordedSession
from rtevo.records import EventKind
from rtevo.simulate import ParticipantLink, RealTime
from rtevo.supervisor import PRELOADED

__all__ = ["DiskError", "Part", "Played", "play", "small_disks"]

LONGEST_S = 120.0  # of a part of a session; then it hangs
LEAVE_S = 20.0  # for its processes to leave after the command has
LOOK_S = 0.02
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
WARM = (
    *PRELOADED,
    "rtevo.run",
    "rtevo.generate.eager",
    "rtevo.generate.loading",
    "presenter.run",
    "transformers.models.clip.modeling_clip",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img",
)
"""What a session imports: most of the processor time of a short one."""


class DiskError(Exception):
    """A small disk cannot be made here."""


@dataclass
class Part:
    """What came of one part of a session."""

    status: int | None
    printed: str
    signalled_ns: list[int] = field(default_factory=list)
    killed: bool = False  # the command itself, so that it could say nothing
    hung: bool = False
    left: list[str] = field(default_factory=list)  # processes, shared memory, folders


@dataclass
class Played:
    """A session that was played: its folder, and its parts."""

    place: Path
    out: Path
    parts: list[Part] = field(default_factory=list)


def _forked(main: str, arguments: list[str], folder: str, printed: str) -> None:
    """Do what a command does, where all modules are imported already; a session's stages are forked from here."""
    from presenter.__main__ import main as present
    from rtevo import run, supervisor

    os.setsid()
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    fork = mp.get_context("fork")
    supervisor.mp.get_context = lambda _: fork  # type: ignore[assignment,misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [main, *arguments]
    sys.exit(run.main() if main == "rtevo.run" else present(arguments))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit libraries in processes started here to one thread."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class Process:
    """A command in a process group of its own, by its name or in a fork of a process that has everything imported."""

    def __init__(self, main: str, arguments: Sequence[str], folder: Path, printed: Path, *, cold: bool) -> None:
        environment = {"TMPDIR": str(folder), **ONE_THREAD}
        if cold:
            with printed.open("ab") as file:
                command = [sys.executable, "-m", main, *arguments]
                self._process: Any = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True, env={**os.environ, **environment}
                )
        else:
            context = mp.get_context("forkserver")
            context.set_forkserver_preload(list(WARM))
            self._process = context.Process(target=_forked, args=(main, list(arguments), str(folder), str(printed)))
            with _one_thread():  # the server keeps the environment that it was started in
                self._process.start()
        self.pid = int(self._process.pid)

    def poll(self) -> int | None:
        """Exit status, None as long as it runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def kill(self) -> None:
        """Kill its whole group, and it."""
        for kill in (os.killpg, os.kill):
            with suppress(ProcessLookupError):
                kill(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(LOOK_S)


def small_disks() -> bool:
    """Whether small disks can be mounted here (as root)."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        if _mount(disk, 100):
            _umount(disk)
            return True
    return False


def _mount(disk: Path, kb: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={kb}k", "rtevo-campaign", str(disk)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _umount(disk: Path) -> None:
    subprocess.run(["umount", "-l", str(disk)], check=False)


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class _Session:
    """One session in its folder."""

    def __init__(self, planned: Scenario, place: Path, decoder: Path) -> None:
        self.planned, self.place = planned, place
        self.folder, self.temporary, self.disk = place / "incoming", place / "tmp", place / "disk"
        for folder in (self.folder, self.temporary, self.disk):
            folder.mkdir()
        self.out = (self.disk if planned.disk_kb else place) / "out"
        self.port, self.bridge = free_port(), f"tcp://127.0.0.1:{free_port()}"
        self.journal = Journal(place / "journal.jsonl")
        self._write(decoder)

    def _write(self, decoder: Path) -> None:
        delivery = self.planned.transport if self.planned.transport == "push" else "folder"
        delivery = "dicom" if self.planned.transport == "store" else delivery
        folder = f'folder = "{self.folder}"\n' * (delivery == "folder")
        method = "first_score_s = 5.0\n" if self.planned.seed % 4 == 0 else 'method = "peak"\ndelay_s = 0.8\n'
        (self.place / "session.toml").write_text(
            f'[acquisition]\nsource = "watch"\ndelivery = "{delivery}"\n{folder}port = {self.port}\ntr_s = {TR_S}\n'
            f'largest = [32, 32, 12]\nstall_s = 2.0\n[decoder]\nfolder = "{decoder}"\n{method}'
            f'[bridge]\nbind = "{self.bridge}"\n[evolution]\ngenerations = 1\npopulation = {self.planned.images}\nscore_deadline_s = 8.0\n'
            "[generator]\nsteps = 3\n"
            "[presentation]\nbaseline_s = 0.5\nimage_s = 0.8\nwashout_s = 0.2\nend_s = 0.1\n",
            encoding="utf-8",
        )

    def log_text(self) -> str:
        """Return the session's output so far."""
        log = self.out / "session.log"
        try:
            return log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def play(self, number: int) -> Part:
        """Play a part of the session to its end."""
        planned, first = self.planned, number == 0
        printed, eyes = self.place / f"printed-{number}.log", f"ipc://{self.place}/eyes-{number}"
        before = len(self.log_text())
        words = [str(self.place / "session.toml"), "--out", str(self.out)] if first else ["--resume", str(self.out)]
        began_s = time.monotonic()
        process = Process("rtevo.run", words, self.temporary, printed, cold=planned.cold)
        signals = planned.signals if first else []
        steps = planned.steps if first else clean_run(planned.transport, planned.seed, number)
        part = Part(None, "")
        with ParticipantLink(eyes) as link:
            alone = any(s.phase == "waiting" for s in signals)
            presenting = None
            if not alone:
                arguments = ["--connect", self.bridge, "--headless", "--participant", eyes]
                presenting = Process("presenter", arguments, self.temporary, self.place / f"presenter-{number}.log", cold=False)
            alive = lambda: process.poll() is None  # noqa: E731
            limit = threading.Timer(LONGEST_S, self._hang, args=(process, part))
            limit.start()
            troubles = _Trouble(self, process, signals, began_s, before, part)
            try:
                self._scan(link, steps, alive, troubles, number, before)
            finally:
                while alive():
                    time.sleep(LOOK_S)
                limit.cancel()
                troubles.join()
                part.status, part.printed = process.poll(), printed.read_text(errors="replace") if printed.exists() else ""
                part.left = self._left(process, before)
                if presenting is not None:
                    presenting.kill()
        return part

    def _hang(self, process: Process, part: Part) -> None:
        part.hung = True
        process.kill()

    def _scan(
        self, link: ParticipantLink, steps: list[Step], alive: Callable[[], bool], troubles: _Trouble, number: int, before: int
    ) -> None:
        """Be the scanner: deliver until the session has ended."""
        room = Watched(link, RealTime(stop=lambda: not alive()), self.journal)
        sender = Sender(self.folder, self.planned.transport, self.port, self.journal, alive)
        self.journal.note("begin", part=number)
        try:
            while alive() and " has come" not in self.log_text()[before:]:
                room.wait_until(room.time.now_s() + LOOK_S)
            troubles.came = True
            early = min([0.0, *(step.at_tr for step in steps)])
            pressed = False
            start_s = room.time.now_s() + 0.6 - early * TR_S
            if any(s.phase == "before" for s in troubles.signals):
                start_s += 1.5
            for step in steps:
                if step.at_tr >= 0 and not pressed:
                    if not self._press(room, link, start_s):
                        break
                    pressed, start_s = True, room.start_s
                    troubles.triggered_s = time.monotonic()
                if not room.wait_until(start_s + step.at_tr * TR_S):
                    break
                sender.do(step)
            while room.wait_until(room.time.now_s() + 1.0):
                pass
        except LinkError as error:
            self.journal.note("lost", error=str(error))
        finally:
            sender.close()

    def _press(self, room: Watched, link: ParticipantLink, start_s: float) -> bool:
        return room.wait_until(start_s) and link.connected and room.trigger()

    def _left(self, process: Process, before: int) -> list[str]:
        """What a part has left behind: processes, shared memory, temporary folders."""
        deadline = time.monotonic() + LEAVE_S
        while (group := _group(process.pid)) and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        left = [f"process {pid}" for pid in group]
        process.kill()
        name = re.search(r"session (\w+)", self.log_text()[before:])
        left += [f"/dev/shm/{e}" for e in os.listdir("/dev/shm") if name is not None and name.group(1) in e]
        return left + [str(path.relative_to(self.place)) for path in self.temporary.iterdir() if path.name.startswith("rtevo")]

    def end(self) -> None:
        """Close the journal."""
        self.journal.close()


def _group(group: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


class _Trouble:
    """Sends signals and fills the disk, each in its time, from a thread of its own."""

    def __init__(self, session: _Session, process: Process, signals: list[Signal], began_s: float, before: int, part: Part) -> None:
        self.signals, self.came, self.triggered_s = signals, False, 0.0
        self._session, self._process, self._began_s, self._before, self._part = session, process, began_s, before, part
        fill = session.planned.fill if before == 0 and not session.planned.signals else None
        todo: list[Callable[[], None]] = [partial(self._signal, s) for s in signals]
        todo += [partial(self._fill, *fill)] if fill else []
        self._threads = [threading.Thread(target=one, daemon=True) for one in todo]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all is done that still can be."""
        for thread in self._threads:
            thread.join(30)

    def _since(self, phase: str) -> float | None:
        """When a phase of the session began, None as long as it has not."""
        session, text = self._session, ""
        if phase == "starting":
            return self._began_s
        if phase == "waiting":
            text = session.log_text()[self._before :]
            return time.monotonic() if "stage record is process" in text and self._waits() else None
        if phase == "before":
            return time.monotonic() if self.came else None
        if phase == "running":
            return self.triggered_s or None
        with suppress(Exception):
            recorded = RecordedSession(session.out)
            if phase == "alarm":
                return time.monotonic() if any(notice.level == "alarm" for notice in recorded.records(Notice)) else None
            if recorded.events(EventKind.END):
                return time.monotonic()
        return None

    def _waits(self) -> bool:
        printed = self._session.place / "printed-0.log"
        return printed.exists() and "queues" in printed.read_text(errors="replace")

    def _until(self, phase: str, after_s: float) -> bool:
        """Wait for a moment; whether it came before the session ended."""
        since_s = None
        while self._process.poll() is None:
            since_s = since_s or self._since(phase)
            if since_s is not None and time.monotonic() >= since_s + after_s:
                return True
            time.sleep(LOOK_S / 4)
        return False

    def _signal(self, planned: Signal) -> None:
        if not self._until(planned.phase, planned.after_s):
            return
        number = signal.Signals[planned.name]
        self._send(planned.target, number)
        if planned.again_s:
            second = signal.SIGCONT if number == signal.SIGSTOP else number
            deadline = time.monotonic() + planned.again_s
            while time.monotonic() < deadline and (self._process.poll() is None or number == signal.SIGSTOP):
                time.sleep(LOOK_S / 4)
            self._send(planned.target, second)

    def _send(self, target: str, number: signal.Signals) -> None:
        """Send a signal to the group, the command, or a stage."""
        session, pid = self._session, self._process.pid
        if target not in ("group", "command"):
            found = re.findall(rf"stage {target} is process (\d+)", session.log_text()[self._before :])
            if not found:
                session.journal.note("no such process", target=target)
                return
            pid = int(found[-1])
        if self._process.poll() is not None:
            return
        self._part.signalled_ns.append(time.monotonic_ns())
        self._part.killed |= number == signal.SIGKILL and target in ("group", "command")
        session.journal.note("signal", target=target, number=number.name)
        with suppress(ProcessLookupError):
            (os.killpg if target == "group" else os.kill)(pid, number)

    def _fill(self, after_s: float, but_kb: int) -> None:
        if not self._until("running" if after_s >= 0 else "before", max(after_s, 0.0)):
            return
        file = self._session.disk / "others"
        with suppress(OSError), file.open("wb", buffering=0) as filler:
            os.posix_fallocate(filler.fileno(), 0, max(1, shutil.disk_usage(self._session.disk).free - 1024 * but_kb))
        self._part.signalled_ns.append(time.monotonic_ns())
        self._session.journal.note("filled", free=shutil.disk_usage(self._session.disk).free)


def play(planned: Scenario, place: Path, decoder: Path) -> Played:
    """Play a session, and take it up again where it did not complete.

    Parameters
    ----------
    planned : Scenario
    place : Path
        An empty folder for all that it writes.
    decoder : Path
        Decoder folder.

    Raises
    ------
    DiskError
        A small disk is needed and cannot be mounted.
    """
    session = _Session(planned, place, decoder)
    if planned.disk_kb and not _mount(session.disk, planned.disk_kb):
        raise DiskError("small disks need root (mount)")
    played = Played(place, session.out)
    try:
        for step in planned.there:
            (session.folder / step.name).write_bytes(step.data if isinstance(step.data, bytes) else step.data())
        played.parts.append(session.play(0))
        if planned.resume and not played.parts[0].hung and _goes_on(session.out):
            (session.disk / "others").unlink(missing_ok=True)  # somebody makes room
            if planned.disk_kb:
                subprocess.run(["mount", "-o", "remount,size=32m", str(session.disk)], check=False)
            played.parts.append(session.play(1))
        if planned.disk_kb:  # what is checked stays when the disk goes
            shutil.copytree(session.out, place / "out") if session.out.exists() else None
            played.out = place / "out"
    finally:
        session.end()
        if planned.disk_kb:
            _umount(session.disk)
    return played


def _goes_on(out: Path) -> bool:
    """Whether a session was interrupted that had recorded something."""
    try:
        recorded = RecordedSession(out)
    except Exception:
        return (out / LOG).exists()
    return bool(recorded.log) and recorded.status != "completed"
