"""What goes wrong in a session of the campaign: it follows from a kind and a seed."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.campaign.sender import Step
from bench.campaign.series import TR_S, TRANSPORTS, Files, encoder, fingerprint, volume

__all__ = ["KINDS", "STAGES", "Scenario", "Signal", "clean_run", "scenario"]

VOLUMES = 64  # that are sent at most; a session ends before
FOLDERS = ("mosaic", "slices", "nifti")
STAGES = ("ingest", "decode", "evolve", "generate", "bridge", "record")
PATIENCE_TR = 3.0
LAST_BYTES = 2048  # that the last piece of a file has at least: of fewer, or none but zeros, nobody can see that they are missing


@dataclass(frozen=True)
class Signal:
    """A signal that is sent to a session.

    Parameters
    ----------
    phase : str
        starting (`after_s` after the command), waiting (after it waits for the presenter, who does not come), before (after the presenter
        has come, before the trigger), running (after the trigger), ending (after the last image), alarm (after an alarm).
    after_s : float
    name : str
        Of the signal.
    target : str
        group, command, or a stage.
    again_s : float
        It is sent a second time so long after; STOP: CONT is. 0: it is not.
    """

    phase: str
    after_s: float
    name: str
    target: str
    again_s: float = 0.0


@dataclass
class Scenario:
    """A session of the campaign.

    Parameters
    ----------
    kind, seed : str, int
    transport : str
    words : list of str
        What goes wrong, in short.
    steps : list of Step
    there : list of Step
        What lies in the folder before the session begins.
    signals : list of Signal
    cold : bool
        The session is run by the command, else in a fork of a process that has everything imported.
    disk_kb : int
        Size of the disk that the session's folder lies on; 0: the computer's.
    fill : (float, int) or None
        So many s after the trigger all but so many kB of that disk are filled.
    fragile : set of int
        Volumes whose file was there so shortly that they may be missed.
    images : int
        That are shown, one a second.
    resume : bool
        Whether it is taken up where it did not complete.
    """

    kind: str
    seed: int
    transport: str
    words: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    there: list[Step] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    cold: bool = False
    disk_kb: int = 0
    fill: tuple[float, int] | None = None
    fragile: set[int] = field(default_factory=set)
    images: int = 3
    resume: bool = True


class _Run:
    """Plans how the volumes of a run are delivered."""

    def __init__(self, rng: np.random.Generator, transport: str, files: Files, run: str = "run", number: int = 0) -> None:
        self.rng, self.transport, self.files, self.run, self.number = rng, transport, files, run, number
        self.steps: list[Step] = []

    def due_tr(self, index: int) -> float:
        """When a volume is there at a scanner that has no faults."""
        return index + 1.0 + float(self.rng.uniform(0.0, 0.2))

    def contents(self, index: int) -> list[tuple[str, bytes]]:
        """Files of a volume."""
        return self.files(index, volume(index, self.number))

    def common(self, index: int, pieces: int) -> dict[str, Any]:
        """What the steps of a volume have in common."""
        return {"volume": index, "run": self.run, "pieces": pieces, "sha256": fingerprint(volume(index, self.number))}

    def whole(self, index: int, at_tr: float, spread_tr: float = 0.1, *, leave: int = 0, name: Callable[[str], str] = str) -> None:
        """Deliver a volume at once, its slices within `spread_tr`; the last `leave` files never."""
        files = self.contents(index)
        do = "send" if self.transport in ("store", "push") else "write"
        for k, (own, data) in enumerate(files[: len(files) - leave]):
            at = at_tr + spread_tr * k / len(files)
            self.steps.append(Step(at, do, name(own), data, whole=True, **self.common(index, len(files))))

    def in_pieces(self, index: int, at_tr: float, way: str, *, cut: bool = False) -> None:
        """Write a volume's files in a few pieces, with pauses of 1 to 500 ms; if `cut`, the last piece never comes."""
        files = self.contents(index)
        for own, data in files:
            latest = max(len(data.rstrip(b"\0")) - LAST_BYTES, 2)
            ends = sorted(int(e) for e in self.rng.integers(1, latest, size=int(self.rng.integers(1, 4))))
            ends = [0, *ends, len(data)]
            pauses_s = 10.0 ** self.rng.uniform(-3, np.log10(0.5), size=len(ends)) / (1 if len(files) == 1 else 4)
            common, at = self.common(index, len(files)), at_tr
            name = f".{own}.part" if way == "renamed" else own
            if way == "preallocated":
                head = min(len(data) // 4, 2048)
                self.steps.append(Step(at, "write", name, data[:head] + bytes(len(data) - head), **common))
            last = len(ends) - 2
            for k, (start, end) in enumerate(itertools.pairwise(ends)):
                at += pauses_s[k] / TR_S if k or way == "preallocated" else 0.0
                if cut and k == last:
                    break
                do = "fill" if way == "preallocated" else "append" if k else "write"
                done = k == last and way != "renamed"
                self.steps.append(Step(at, do, name, data[start:end], whole=done, offset=start, **common))
            if way == "renamed" and not cut:
                self.steps.append(Step(at + pauses_s[-1] / TR_S, "rename", name, to=own, whole=True, **common))


def clean_run(transport: str, seed: int, part: int) -> list[Step]:
    """The steps of a run in which nothing goes wrong, as the one that follows an interrupted one."""
    run = _Run(np.random.default_rng([seed, part, 99]), transport, encoder(transport, series_number=20 + part), number=20 + part)
    for index in range(VOLUMES):
        run.whole(index, run.due_tr(index))
    return run.steps


def _reordered(s: Scenario, run: _Run) -> None:
    furthest = float(run.rng.choice([1.5, 2.5, 6.0]))
    s.words.append(f"up to {furthest:g} TR late")
    for index in range(VOLUMES):
        late = float(run.rng.uniform(0, furthest)) if run.rng.random() < 0.5 else 0.0
        run.whole(index, run.due_tr(index) + late, float(run.rng.uniform(0, 1.5)))


def _gaps(s: Scenario, run: _Run) -> None:
    share, longest = float(run.rng.choice([0.05, 0.15, 0.3])), int(run.rng.choice([1, 4]))
    never: set[int] = set()
    for index in range(VOLUMES):
        if run.rng.random() < share:
            never |= set(range(index, index + int(run.rng.integers(1, longest + 1))))
    if run.rng.random() < 0.3:
        never.add(0)
    if s.transport == "push":
        never.discard(0)  # a run that is pushed begins with it
    s.words.append(f"never sent: {' '.join(map(str, sorted(k for k in never if k < 30)))}")
    for index in range(VOLUMES):
        if index not in never:
            run.whole(index, run.due_tr(index))
        elif s.transport == "slices" and run.rng.random() < 0.5:
            run.whole(index, run.due_tr(index), leave=int(run.rng.integers(1, 12)))


def _duplicates(s: Scenario, run: _Run) -> None:
    way = str(run.rng.choice(["another name", "the same name", "all again"])) if s.transport in FOLDERS else "sent again"
    s.words.append(way)
    for index in range(VOLUMES):
        due = run.due_tr(index)
        run.whole(index, due)
        again = due + float(run.rng.uniform(0.1, 6))
        if way == "another name" and run.rng.random() < 0.4 and s.transport != "nifti":
            run.whole(index, again, name=lambda own: f"copy-of-{own}")
        elif way in ("the same name", "sent again") and run.rng.random() < 0.4:
            run.whole(index, again)
        elif way == "all again" and index < 12:
            run.whole(index, 14.0 + index / 12)


def _torn(s: Scenario, run: _Run) -> None:
    if s.transport == "push":
        _refused(s, run)
        return
    if s.transport == "store":
        _knocked(s, run)
        return
    way = str(run.rng.choice(["growing", "preallocated", "renamed"]))
    if way == "preallocated" and s.transport == "slices":
        way = "growing"  # files of a few kilobytes are written at once
    cuts = float(run.rng.choice([0.0, 0.1]))
    s.words.append(way + f", {cuts:.0%} cut" * bool(cuts))
    for index in range(VOLUMES):
        run.in_pieces(index, run.due_tr(index), way, cut=bool(run.rng.random() < cuts) and index > 0)


def _refused(s: Scenario, run: _Run) -> None:
    """Messages that are wrong, most of them put right and sent again."""
    s.words.append("wrong messages, put right or not")
    for index in range(VOLUMES):
        due = run.due_tr(index)
        [(name, data)] = run.contents(index)
        header, _, voxels = data.partition(b"\n")
        told = json.loads(header)
        wrong = int(run.rng.integers(0, 12)) if index else 99
        if wrong == 0:
            told["shape"] = [32, 32, 11]
        elif wrong == 1:
            told["affine"][0][3] += 40.0
        elif wrong == 2:
            voxels = voxels[: len(voxels) // 2]
        elif wrong == 3:
            told["index"] = -1
        if wrong < 4:
            common = {**run.common(index, 1), "sha256": ""}
            run.steps.append(Step(due, "send", name, json.dumps(told).encode() + b"\n" + voxels, whole=True, **common))
        if wrong >= 4 or run.rng.random() < 0.6:
            run.whole(index, due + 0.1)


def _knocked(s: Scenario, run: _Run) -> None:
    """Connections that ask for nothing, or break off, beside whole pictures."""
    s.words.append("connections that break off")
    for index in range(VOLUMES):
        run.whole(index, run.due_tr(index))
        for _ in range(int(run.rng.integers(0, 4))):
            broken = bytes(run.rng.integers(0, 256, int(run.rng.integers(0, 200)), dtype=np.uint8))
            beginning = b"\x01\x00\x00\x00\x00\xcd\x00\x01" + broken
            at = index + float(run.rng.uniform(0, 1))
            run.steps.append(Step(at, "knock", "knock", beginning if run.rng.random() < 0.5 else broken, run="other"))


def _restarted(s: Scenario, run: _Run) -> None:
    same = bool(run.rng.random() < 0.5) and s.transport != "push"
    first = int(run.rng.integers(1, 5))
    if run.rng.random() < 0.5:  # the run before was begun and aborted while the session waited for its trigger
        s.words.append(f"aborted after {first} volumes before the trigger, again " + ("under the same series" if same else "as the next"))
        old = _Run(run.rng, s.transport, encoder(s.transport, series_number=2 if same else 1), "aborted", 1)
        new = _Run(run.rng, s.transport, encoder(s.transport, series_number=2, again=int(same)), "run", 0)
        for index in range(first):
            old.whole(index, index - first - 4.0)
        for index in range(VOLUMES):
            new.whole(index, new.due_tr(index))
        run.steps += old.steps + new.steps
        return
    aborted = first + 3
    s.words.append(f"aborted after {aborted} volumes, again " + ("under the same series" if same else "as the next"))
    for index in range(aborted):
        run.whole(index, run.due_tr(index))
    again = encoder(s.transport, series_number=2 if same else 3, again=int(same))
    new = _Run(run.rng, s.transport, again, "again", 1)
    for index in range(VOLUMES):
        new.whole(index, aborted + 8.0 + new.due_tr(index))
    run.steps += new.steps
    s.images = 12  # more than come before the alarm
    s.signals.append(Signal("alarm", float(run.rng.uniform(0.2, 1.5)), "SIGTERM", "group"))


def _renamed(s: Scenario, run: _Run) -> None:
    ways = {"mosaic": 5, "slices": 2, "nifti": 1}
    way = int(run.rng.integers(ways[s.transport]))
    s.words.append(["under a temporary name first", "under another name later", "one name, renamed into place", "one name, overwritten",
                    "the folder is emptied"][way])  # fmt: skip
    temporary = str(run.rng.choice([".{}", "{}.part", "{}.tmp"]))
    for index in range(VOLUMES):
        due = run.due_tr(index)
        files = run.contents(index)
        common = run.common(index, len(files))
        for k, (own, data) in enumerate(files):
            at = due + 0.2 * k / len(files)
            if way == 0:
                run.steps.append(Step(at, "write", temporary.format(own), data, **common))
                later = at + float(run.rng.uniform(0.05, 2.0))
                run.steps.append(Step(later, "rename", temporary.format(own), to=own, whole=True, **common))
            elif way == 1:
                run.steps.append(Step(at, "write", own, data, whole=True, **common))
                if run.rng.random() < 0.5:
                    run.steps.append(Step(at + float(run.rng.uniform(2, 8)), "rename", own, to=f"archive-{own}", run="moved"))
            elif way == 2:
                run.steps.append(Step(at, "write", ".next", data, **common))
                run.steps.append(Step(at + 0.05, "rename", ".next", to="current.dcm", whole=True, **common))
            elif way == 3:
                run.steps.append(Step(at, "write", "current.dcm", data, whole=True, **common))
            else:
                run.steps.append(Step(at, "write", own, data, whole=True, **common))
                gone = 12.0 * np.ceil((due + 10.0) / 12.0)  # emptied every 3 s, of what is older than 2.5 s
                run.steps.append(Step(gone, "remove", own, run="moved"))
    if way in (2, 3):
        s.fragile = set(range(VOLUMES))


def _late(s: Scenario, run: _Run) -> None:
    """What is left of earlier runs and other participants comes before and in the run, some of the run's volumes after their gap."""
    old = _Run(run.rng, s.transport, encoder(s.transport, series_number=1), "earlier", 1)
    other = _Run(run.rng, s.transport, encoder(s.transport, series_number=1, days_before=1), "stranger", 2)
    found = int(run.rng.integers(0, 4))
    if found and s.transport in FOLDERS:
        s.words.append(f"{found} of an earlier run lie there")
        for index in range(found):
            old.whole(index, 0.0)
        s.there, old.steps = old.steps, []
    if s.transport != "push":
        begin = int(run.rng.integers(20, 60))
        ends = [float(run.rng.uniform(-8, 10)) for _ in range(int(run.rng.integers(1, 6)))]
        s.words.append(f"{len(ends)} of an earlier run come")
        for k, at in enumerate(sorted(ends)):
            old.whole(begin + k, at)
        for index in range(int(run.rng.integers(0, 4))):
            other.whole(index, float(run.rng.uniform(-8, 12)))
    share = float(run.rng.choice([0.0, 0.15]))
    for index in range(VOLUMES):
        late = float(run.rng.uniform(PATIENCE_TR + 1, 9.0)) if index and run.rng.random() < share else 0.0
        run.whole(index, run.due_tr(index) + late)
    s.words.append(f"{share:.0%} after their patience")
    run.steps += old.steps + other.steps


def _plain(s: Scenario, run: _Run) -> None:
    for index in range(VOLUMES):
        run.whole(index, run.due_tr(index))


def _stop(s: Scenario, run: _Run) -> None:
    rng = run.rng
    _signal(s, rng, str(rng.choice(["SIGTERM", "SIGINT", "SIGHUP"])), str(rng.choice(["group", "group", "command"])))


def _signal(s: Scenario, rng: np.random.Generator, name: str, target: str) -> None:
    phase = str(rng.choice(["starting", "waiting", "before", "running", "running", "running", "ending"]))
    most_s = {"starting": 8.0 if s.cold else 3.0, "waiting": 1.0, "before": 1.5, "running": 7.0, "ending": 0.6}[phase]
    again_s = float(rng.choice([0.0, 0.0, 0.05, 1.0])) if name in ("SIGTERM", "SIGINT", "SIGHUP") else 0.0
    s.signals.append(Signal(phase, float(rng.uniform(0, most_s)), name, target, again_s))


def _kill(s: Scenario, run: _Run) -> None:
    rng = run.rng
    _signal(s, rng, "SIGKILL", str(rng.choice([*STAGES, "command", "group"])))


def _freeze(s: Scenario, run: _Run) -> None:
    for _ in range(int(run.rng.integers(1, 4))):
        phase = str(run.rng.choice(["before", "running", "running", "ending"]))
        after_s = float(run.rng.uniform(0, {"before": 1.5, "running": 6.0, "ending": 0.3}[phase]))
        target = str(run.rng.choice([*STAGES, "command", "group"]))
        s.signals.append(Signal(phase, after_s, "SIGSTOP", target, float(run.rng.uniform(0.1, 1.5))))


def _disk(s: Scenario, run: _Run) -> None:
    s.disk_kb = int(run.rng.choice([150, 300, 500, 800, 1200]))
    if run.rng.random() < 0.7:
        s.disk_kb = 12000
        s.fill = (float(run.rng.uniform(-1.0, 6.0)), int(run.rng.choice([0, 4, 60, 200])))
    s.words.append(f"a disk of {s.disk_kb} kB" + (f", all but {s.fill[1]} kB filled {s.fill[0]:.1f} s after the trigger" if s.fill else ""))


DELIVERIES: dict[str, tuple[Callable[[Scenario, _Run], None], tuple[str, ...]]] = {
    "reordered": (_reordered, TRANSPORTS),
    "gaps": (_gaps, TRANSPORTS),
    "duplicates": (_duplicates, TRANSPORTS),
    "torn": (_torn, ("mosaic", "nifti", "slices", "store", "push")),
    "restarted": (_restarted, ("mosaic", "slices", "store", "push")),
    "renamed": (_renamed, FOLDERS),
    "late": (_late, ("mosaic", "slices", "store", "nifti")),
}
HARMS: dict[str, Callable[[Scenario, _Run], None]] = {"stop": _stop, "kill": _kill, "freeze": _freeze, "disk": _disk}
KINDS = (*DELIVERIES, *HARMS, "mixed")


def scenario(kind: str, seed: int) -> Scenario:
    """Plan the session of a kind and a seed; the same ones give the same plan.

    Raises
    ------
    KeyError
        There is no such kind.
    """
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    delivery, transports = DELIVERIES.get(kind, (_plain, TRANSPORTS))
    harm = HARMS.get(kind)
    words: list[str] = []
    if kind == "mixed":
        name = str(rng.choice([one for one in DELIVERIES if one != "restarted"]))
        delivery, transports = DELIVERIES[name]
        harming = str(rng.choice(["stop", "kill", "freeze", "disk"], p=[0.35, 0.35, 0.2, 0.1]))
        harm, words = HARMS[harming], [f"{name}, {harming}"]
    planned = Scenario(kind, seed, transports[seed % len(transports)], words)
    planned.cold = harm in (_stop, _kill) and seed % 3 == 0
    run = _Run(rng, planned.transport, encoder(planned.transport, compressed=bool(seed % 2)))
    delivery(planned, run)
    if harm is not None:
        harm(planned, run)
    for signal in planned.signals:
        again = f", again after {signal.again_s:.1f} s" * bool(signal.again_s)
        planned.words.append(f"{signal.name} to {signal.target}, {signal.phase} + {signal.after_s:.1f} s{again}")
    planned.steps = sorted(run.steps, key=lambda step: step.at_tr)
    return planned
