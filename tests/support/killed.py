"""Sessions that are killed at random moments and resumed until they are completed, and what is checked then.

Simulated sessions run in lock-step; at random moments, also while they start and while they are being resumed, SIGKILL goes to the whole
process group. Of what is recorded in the end, nothing that was in the log before a kill is missing, nothing is there twice, every image
was shown once, and the tables follow from the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.latent import LatentSpace
from rtevo.past.evolution import go_through, measured
from rtevo.record import (
    LOG,
    AlignedRecord,
    EventRecord,
    ImageRecord,
    LatentRecord,
    RecordedSession,
    ScoreRecord,
    VolumeRecord,
    evolution_of,
    finalise,
    volume_path,
)
from rtevo.records import EventKind
from rtevo.session.course import make_course

TABLES = ("trials.tsv", "motion.tsv", "latents.npz", "summary.json")
EARLY = 0.35  # share of the kills that come at a random time after the start; the others at a random record
START_S = 15.0
RECORDS = 50  # at most so many more are waited for: a session leaves about 110
PART_S = 280.0
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"schedule": "generational", "strategy": "truncation"},
    {"condition": "sham"},
    {"condition": "ratings"},
    {"probe_every": 3},
    {"rebaseline": True},
    {"method": "peak", "use_post_encodings": True},
    {"schedule": "generational", "rebaseline": True},
)


@dataclass
class Outcome:
    """One session.

    Parameters
    ----------
    number : int
    kind : dict
        What is not by default.
    kills : list of str
        Where each hit: "before anything was recorded", "starting", "running".
    records_lost : int
        Records of before a kill that are not there afterwards.
    torn : int
        Last records that were cut short.
    problems : list of str
    """

    number: int
    kind: dict[str, Any]
    kills: list[str] = field(default_factory=list)
    records_lost: int = 0
    torn: int = 0
    problems: list[str] = field(default_factory=list)


def session_file(folder: Path, kind: dict[str, Any]) -> Path:
    """Write the session file of a kind."""
    evolution = {k: kind[k] for k in ("schedule", "strategy", "probe_every", "use_post_encodings") if k in kind}
    sections = {
        "session": {"condition": kind.get("condition", "brain"), "speed": 0.0},
        "acquisition": {"tr_s": 2.0},
        "decoder": {"method": kind.get("method", "deconvolve")},
        "evolution": {"generations": 2, "population": 3, **evolution},
        "presentation": {"baseline_s": 2.0},
        "generator": {"steps": 4},
        "simulation": {"voxel_mm": [6.0, 6.0, 6.6]},
    }
    text = "\n".join(f"[{name}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in own.items()) for name, own in sections.items())
    file = folder / "session.toml"
    file.write_text(text + "\n", encoding="utf-8")
    return file


def lines(out: Path) -> int:
    """Count the records of a session so far."""
    path = out / LOG
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a session in a process group of its own."""
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-m", "rtevo.run", *command], stdout=file, stderr=file, start_new_session=True)


def kill_somewhere(process: subprocess.Popen[bytes], out: Path, rng: np.random.Generator) -> bool:
    """Kill the group at a random moment; whether it was still running then."""
    began, before = time.monotonic(), lines(out)
    early, target, pause_s = rng.random() < EARLY, before + int(rng.integers(1, RECORDS)), float(rng.exponential(0.05))
    moment_s = float(rng.uniform(0, START_S))
    while process.poll() is None:
        if (early and time.monotonic() > began + moment_s) or (not early and lines(out) >= target):
            break
        if time.monotonic() > began + PART_S:
            break
        time.sleep(0.002)
    time.sleep(pause_s)
    alive = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while alive and group_left(process.pid):
        time.sleep(0.01)
    return alive


def group_left(group: int) -> bool:
    """Whether a process group has any process left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def play(
    number: int,
    kind: dict[str, Any],
    kills: int,
    rng: np.random.Generator,
    place: Path,
    start: Callable[[Sequence[str], Path], Any] = start,
) -> Outcome:
    """Run one session to its end, killing it so many times."""
    outcome = Outcome(number, kind)
    out, printed = place / "out", place / "printed.log"
    first = [str(session_file(place, kind)), "--out", str(out)]
    again = ["--resume", str(out)] + ["--rebaseline"] * bool(kind.get("rebaseline"))
    before = b""
    while True:
        process = start(again if before else first, printed)
        if len(outcome.kills) < kills:
            if not kill_somewhere(process, out, rng):
                break
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3 * PART_S)
            break
        now = (out / LOG).read_bytes() if (out / LOG).exists() else b""
        whole = now[: now.rfind(b"\n") + 1]
        outcome.torn += whole != now
        outcome.records_lost += sum(a != b for a, b in zip(before.splitlines(), whole.splitlines(), strict=False))
        outcome.records_lost += max(0, before.count(b"\n") - whole.count(b"\n"))
        outcome.kills.append(
            "before anything was recorded" if not whole else "starting" if whole.count(b"\n") <= before.count(b"\n") + 1 else "running"
        )
        if not whole:
            shutil.rmtree(out, ignore_errors=True)
        before = whole
    if process.poll() != 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        outcome.problems.append(f"ended with {process.wait()}: {printed.read_text(errors='replace')[-600:]}")
        return outcome
    if not (out / LOG).read_bytes().startswith(before):
        outcome.problems.append("what was recorded before the last kill is not there")
    outcome.problems += check(out)
    return outcome


def check(out: Path) -> list[str]:
    """Find what is wrong with a completed session's record."""
    session = RecordedSession(out)
    problems = [f"{n} times: {what}" for what, n in Counter(_names(session)).items() if n > 1]
    problems += _check_numbers(session) + _check_files(session) + _check_evolution(session)
    if session.log[-1] is not session.end or session.status != "completed":
        problems.append(f"the last record is {session.log[-1].type}")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(out / LOG, folder)
        finalise(Path(folder))
        problems += [
            f"{name} does not follow from the log" for name in TABLES if (Path(folder) / name).read_bytes() != (out / name).read_bytes()
        ]
    return problems


def _names(session: RecordedSession) -> list[str]:
    """Name each thing that may be recorded once."""
    found = []
    for number, part in enumerate(session.parts):
        for r in part:
            if isinstance(r, (LatentRecord, ImageRecord)):
                found.append(f"{r.type} {r.generation}/{r.candidate}")
            elif isinstance(r, ScoreRecord):
                found.append(f"{r.type} {r.generation}/{r.candidate} revision {r.revision}")
            elif isinstance(r, (VolumeRecord, AlignedRecord)):
                found.append(f"{r.type} {r.index}")
            elif isinstance(r, EventRecord) and r.kind in (EventKind.ONSET, EventKind.OFFSET, EventKind.RATING):
                found.append(f"{r.type} {r.generation}/{r.candidate} {EventKind(r.kind).name}")
            elif isinstance(r, EventRecord) and r.kind == EventKind.TRIGGER:
                found.append(f"trigger of part {number}")
    return found


def _check_numbers(session: RecordedSession) -> list[str]:
    """Whether volumes, revisions and images are counted through."""
    problems = []
    volumes, aligned = ([r.index for r in session.records(kind)] for kind in (VolumeRecord, AlignedRecord))
    if volumes != list(range(len(volumes))):
        problems.append("volumes are not counted through")
    if any(part.start.decoder_state == "kept" for part in session.parts) and aligned != volumes:
        problems.append("not every volume has its motion")
    revisions: dict[tuple[int, int], list[int]] = {}
    for r in session.records(ScoreRecord):
        revisions.setdefault((r.generation, r.candidate), []).append(r.revision)
    problems += [f"revisions of {key}: {own}" for key, own in revisions.items() if own != list(range(len(own)))]
    shown = [(e.generation, e.candidate) for e in session.events(EventKind.ONSET)]
    asked = [(r.generation, r.candidate) for r in session.records(LatentRecord)]
    if shown != asked:
        problems.append(f"asked for {asked}, shown {shown}")
    evolution = session.config.evolution
    if sum(candidate < evolution.population for _, candidate in shown) != evolution.generations * evolution.population:
        problems.append(f"expected every candidate, shown {shown}")
    return problems


def _check_files(session: RecordedSession) -> list[str]:
    """Whether every picture and every volume that the log tells of is there, whole."""
    import nibabel

    problems = []
    for r in session.records(ImageRecord):
        pixels = np.array(session.images[r.generation, r.candidate])
        if hashlib.sha256(pixels.tobytes()).hexdigest() != r.sha256:
            problems.append(f"picture {r.generation}/{r.candidate} is not the recorded one")
    for index in session.came:
        try:
            np.asarray(nibabel.load(volume_path(session.out, index)).dataobj)
        except (OSError, EOFError, ValueError) as error:
            problems.append(f"volume {index}: {error}")
    return problems


def _check_evolution(session: RecordedSession) -> list[str]:
    """Whether evolution's state at the end is what follows from the log."""
    config, space, log = session.config, LatentSpace.load(session.out / "latent_space.npz"), session.log
    course = make_course(config, config.session.condition, space)
    past = go_through(course, log, measured(log, config.session.condition))
    state = evolution_of(session.out)["evolver"]
    problems = [f"{len(past.told)} fitness values are not in the log"] if past.told else []
    rebuilt = json.loads(json.dumps(course.evolver.to_state()))
    names = [name for name in state if rebuilt[name] != state[name] and not (config.evolution.use_post_encodings and name == "latents")]
    return problems + [f"evolution's {name} at the end is not what follows from the log" for name in names]
