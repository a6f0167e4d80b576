"""Checks of a session of the campaign: counted from the sender's journal, never from the session's own record."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from bench.campaign.play import Part, Played
from bench.campaign.scenarios import PATIENCE_TR, Scenario
from bench.campaign.series import SETTINGS, fingerprint
from rtevo.errors import RtevoError
from rtevo.record import LOG, ImageRecord, LatentRecord, Notice, RecordedSession, VolumeRecord, finalise, volume_path
from rtevo.record import Part as Recorded
from rtevo.records import EventKind, VolumeFlag

__all__ = ["Outcome", "check"]

TABLES = ("trials.tsv", "motion.tsv", "latents.npz", "summary.json")
INTERRUPTED = -2  # what shells call 130: Python itself ends so where Ctrl-C comes in certain moments of an import
SLACK_NS = 100_000_000  # between a volume's last byte and the moment from which it must be in the record
HARMED_NS = 3_000_000_000  # before a process was killed: what came later may have been on its way


def _status(part: Recorded) -> str:
    """How a part ended; ``interrupted`` where its log does not say so last."""
    return part.end.status or "" if part.end is not None and part[-1] is part.end else "interrupted"


@dataclass
class Outcome:
    """What became of a session.

    Parameters
    ----------
    kind, seed, transport : str, int, str
    words : str
        What went wrong in it.
    status : str
        How its last part ended: completed, stopped, failed, interrupted; nothing recorded.
    parts : int
    sent, received, missing, refused : int
        Volumes of the run, as far as the session took any; of these received bit for bit, named missing, named refused.
    doubtful : int
        Received, and named as perhaps not whole: files that were never completed, or changed after they had been taken.
    late : int
        Of those received: after they had been declared missing.
    after_end : int
        Sent whole when the session no longer took any.
    sentence : str
        What it ended with where it did not complete.
    seconds : float
    problems : list of str
    """

    kind: str
    seed: int
    transport: str
    words: str
    status: str = ""
    parts: int = 0
    sent: int = 0
    received: int = 0
    missing: int = 0
    refused: int = 0
    doubtful: int = 0
    late: int = 0
    after_end: int = 0
    sentence: str = ""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass
class _Sent:
    """What the sender did with the volumes of one run."""

    whole_ns: dict[int, int] = field(default_factory=dict)  # by volume: when its last byte was there
    sha256: dict[int, str] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    unanswered: set[int] = field(default_factory=set)  # nobody knows whether they were taken
    begun: dict[int, set[str]] = field(default_factory=dict)  # names of files of which anything was written
    seen: list[str] = field(default_factory=list)  # pictures, in the order in which the participant saw them
    wrong_taken: list[int] = field(default_factory=list)
    others: set[str] = field(default_factory=set)  # pixels of other runs


def _read_journal(path: Path) -> list[_Sent]:
    """The journal's parts, as it says of each what was sent."""
    found: list[_Sent] = []
    pieces: dict[int, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["did"] == "begin":
            found.append(_Sent())
            pieces = {}
        elif entry["did"] == "seen":
            found[-1].seen.append(entry["sha256"])
        elif "volume" in entry and entry["volume"] >= 0:
            _note(found[-1], entry, pieces)
    return found


def _note(sent: _Sent, entry: dict[str, Any], pieces: dict[int, set[str]]) -> None:
    index, answer = entry["volume"], entry["answer"]
    if entry["run"] != "run":
        sent.others.add(entry["sha256"])
        return
    failed = answer is not None and answer.get("ok") is None  # it could not be done
    if failed and entry["did"] != "send":
        return
    sent.begun.setdefault(index, set()).add(entry["name"])
    if entry["did"] == "send":
        if answer is None or failed:
            sent.unanswered.add(index)
        elif not entry["sha256"] and answer["ok"] is True:
            sent.wrong_taken.append(index)
        elif answer["ok"] is False:
            sent.refused.add(index)
        if answer is None or answer.get("ok") is not True:
            return
    if entry["whole"] and entry["sha256"]:
        sent.sha256[index] = entry["sha256"]
        own = pieces.setdefault(index, set())
        own.add(entry["name"])
        if len(own) >= entry["pieces"] and index not in sent.whole_ns:
            sent.whole_ns[index] = entry["t_ns"]


def _pixels(path: Path) -> str:
    """Fingerprint of a saved volume, on the grid on which it was sent; empty where it lies on another."""
    image = nibabel.load(path)
    if image.shape != SETTINGS.shape or not np.allclose(image.affine, SETTINGS.grid.affine, atol=1e-3):
        return ""
    return fingerprint(np.asarray(image.dataobj))


class _Checked:
    """One session, its record beside its journal."""

    def __init__(self, planned: Scenario, played: Played) -> None:
        self.planned, self.played = planned, played
        self.outcome = Outcome(planned.kind, planned.seed, planned.transport, "; ".join(planned.words), parts=len(played.parts))
        self.sent = _read_journal(played.place / "journal.jsonl")
        self.parts: list[list[dict[str, Any]]] = []
        self.text = ""
        self.doubtful = 0

    def blame(self, text: str) -> None:
        self.outcome.problems.append(text)

    def run(self) -> Outcome:
        """Check everything."""
        out = self.played.out
        for number, part in enumerate(self.played.parts):
            self._check_end(number, part)
        if not (out / LOG).exists():
            self.outcome.status = "nothing recorded"
            if out.exists():
                self.blame(f"nothing was recorded, but a folder is left: {sorted(p.name for p in out.iterdir())}")
            self._count_unrecorded()
            return self.outcome
        try:
            self.recorded = RecordedSession(out)
        except RtevoError as error:
            self.blame(f"the log cannot be read: {error}")
            return self.outcome
        self.parts = self.recorded.parts
        ends = [each.end.fields() for each in self.parts if each.end is not None]
        warned = [notice.text for notice in self.recorded.records(Notice) if notice.level == "warning"]
        self.text = (out / "session.log").read_text(errors="replace") + json.dumps([warned, ends])
        self.outcome.status = _status(self.parts[-1]) if self.parts else "interrupted"
        if len(self.parts) > len(self.sent):
            self.blame(f"the log has {len(self.parts)} parts, {len(self.sent)} were played")
            return self.outcome
        for number, part in enumerate(self.parts):
            self._check_volumes(number, part)
        self._check_tables()
        self._check_images()
        self._check_status()
        self._check_alarm()
        return self.outcome

    def _count_unrecorded(self) -> None:
        for sent in self.sent:
            self.outcome.after_end += len(sent.whole_ns)

    # --- how it ended ---------------------------------------------------------------------------------------------------------------

    def _check_end(self, number: int, part: Part) -> None:
        said = [line for line in part.printed.splitlines() if line.startswith("rtevo: ")]
        which = f"part {number + 1}" * (len(self.played.parts) > 1) or "the session"
        if part.hung:
            self.blame(f"{which} hung; it had printed {part.printed[-300:]!r}")
        if "Traceback" in part.printed:
            self.blame(f"{which} printed a traceback: {part.printed[part.printed.index('Traceback') :][:1500]}")
        if part.left and not (part.killed and number == 0):
            self.blame(f"{which} left behind {', '.join(part.left)}")
        if part.status not in (0, 1, 2, 130, INTERRUPTED) and not part.killed and not part.hung:
            self.blame(f"{which} ended with status {part.status}: {part.printed[-500:]}")
        if part.status and not part.killed and not part.hung:
            sentences = [line for line in said if not re.match(r"rtevo: (the data recorded|reading|resuming)", line)]
            if len(sentences) != 1:
                self.blame(f"{which} ended with status {part.status} and {len(sentences)} sentences: {part.printed[-700:]}")
            self.outcome.sentence = " ".join(sentences)[:300]
        if number and part.status:
            self.blame(f"it could not be taken up: status {part.status}, {' '.join(said)}")

    def _check_status(self) -> None:
        """Whether exit status, log and summary agree; and whether a part that nothing harmed was completed."""
        end, part = self.recorded.end, self.played.parts[-1]
        if end is None or self.recorded.log[-1] is not end:
            if not part.killed:
                self.blame(f"the log's last record is {self.recorded.log[-1].type}")
            return
        if part.status == 0 and end.status not in ("completed", "stopped"):
            self.blame(f"exit status 0, but the log says {end.status}")
        if part.status == 1 and end.status not in ("failed", "unscored"):
            self.blame(f"exit status 1, but the log says {end.status}")
        for number, (own, records) in enumerate(zip(self.played.parts, self.parts, strict=False)):
            harmed = own.signalled_ns or (self.planned.disk_kb and number == 0)
            if not harmed and _status(records) != "completed":
                why = (records.end.reason or "")[:300] if records.end else ""
                self.blame(f"nothing harmed part {number + 1}, and it was not completed: {why}")
        if end.status == "failed" and not end.reason:
            self.blame("it failed without a reason")

    def _check_alarm(self) -> None:
        """Whether a run that was begun again after its trigger was an alarm that says so."""
        if not any(s.phase == "alarm" for s in self.planned.signals):
            return
        alarms = [notice.text for notice in self.recorded.records(Notice) if notice.level == "alarm"]
        if not alarms:
            self.blame("the run was begun again, and no alarm was raised")
        elif self.planned.transport != "push" and not any("comes in instead" in text for text in alarms):
            self.blame(f"the run was begun again, and no alarm says so: {alarms}")

    # --- volumes --------------------------------------------------------------------------------------------------------------------

    def _due_ns(self, number: int, part: Recorded) -> float:
        """Until when volumes that were sent must be in the record, monotonic ns."""
        volumes = [r for r in part.records(VolumeRecord) if r.ingested_ns]
        limits = [math.inf]
        ends = [event.t_ns for event in part.events(EventKind.END)]
        if ends and volumes:
            zero_ns = max(r.ingested_ns - r.clock_ns for r in volumes)  # monotonic time of session time 0, or a little less
            limits.append(zero_ns + min(ends) - SLACK_NS)
        status = _status(part)
        if not volumes and not part.events(EventKind.TRIGGER):
            if status == "completed" and number == 0:
                self.blame("it was completed without a trigger")
            return -math.inf  # it was over before the scanner's run: all images had been shown before, say
        signalled = self.played.parts[number].signalled_ns
        if signalled and status in ("stopped", "unscored"):
            limits.append(min(signalled) - SLACK_NS)
        elif status in ("failed", "interrupted"):
            came = max((r.ingested_ns for r in volumes), default=0)
            limits.append(min([came, *signalled]) - HARMED_NS if signalled else came - HARMED_NS)
        if not ends and not signalled and status == "completed":
            self.blame("it was completed without the presenter's end")
        return min(limits)

    def _check_volumes(self, number: int, part: Recorded) -> None:
        sent, base, due_ns = self.sent[number], part.start.first_volume, self._due_ns(number, part)
        records = part.records(VolumeRecord)
        got = {r.index - base for r in records if not r.flags & VolumeFlag.MISSING}
        gone = {r.index - base for r in records if r.flags & VolumeFlag.MISSING}
        counts = Counter((r.index - base, bool(r.flags & VolumeFlag.MISSING)) for r in records)
        twice = [index for (index, _), n in counts.items() if n > 1]
        if twice:
            self.blame(f"volumes {twice} are recorded more than once")
        self.doubtful = 0
        for index in sorted(got):
            self._check_received(number, index, base, sent)
        last = max(got, default=-1)
        for index in range(max([last, *sent.whole_ns, *sent.refused], default=-1) + 1):
            if index not in got:
                self._check_absent(index, sent, gone, due_ns, last)
        outcome = self.outcome
        outcome.received += len(got) - self.doubtful
        outcome.doubtful += self.doubtful
        outcome.late += sum(bool(r.flags & VolumeFlag.LATE) for r in records)
        if sent.wrong_taken:
            self.blame(f"messages that were wrong were answered as taken: volumes {sent.wrong_taken}")
        outcome.sent = outcome.received + outcome.doubtful + outcome.missing + outcome.refused

    def _check_received(self, number: int, index: int, base: int, sent: _Sent) -> None:
        path = volume_path(self.played.out, base + index)
        known = index in sent.whole_ns or index in sent.unanswered
        named = [
            name for name in sent.begun.get(index, ()) if re.search(rf"{re.escape(name)}: ends in .* the file may be incomplete", self.text)
        ]
        if not known and named:
            self.doubtful += 1
            return
        if not known:
            self.blame(f"volume {index} of part {number + 1} was received, but never sent whole")
        try:
            found = _pixels(path)
        except Exception as error:  # of the many that a damaged file may cause
            self.blame(f"{path.name} cannot be read: {error}")
            return
        if known and index in sent.sha256 and found != sent.sha256[index]:
            whose = "those of another run" if found in sent.others else "torn"
            if named or f"changed after volume {base + index} had been read" in self.text:
                self.doubtful += 1
            else:
                self.blame(f"volume {index} of part {number + 1}: its pixels are not those that were sent ({whose})")

    def _check_absent(self, index: int, sent: _Sent, gone: set[int], due_ns: float, last: int) -> None:
        """Whether a volume that was not received is accounted for."""
        outcome, whole_ns = self.outcome, sent.whole_ns.get(index)
        if whole_ns is not None and whole_ns > due_ns and index not in gone:
            outcome.after_end += 1
        elif whole_ns is not None and whole_ns <= due_ns and index not in self.planned.fragile:
            self.blame(f"volume {index} was sent whole {(due_ns - whole_ns) / 1e9:.2f} s before the end, and was not received")
        elif index in sent.refused:
            outcome.refused += 1
            if not any(word in self.text for word in ("refused", "cannot be written")):
                self.blame(f"volume {index} was refused, and the session does not say so")
        elif index in gone:
            outcome.missing += 1
        elif index < last and index not in sent.unanswered:
            self.blame(f"volume {index} is neither received nor named as missing, but volume {last} was received")
        if index in gone and whole_ns is not None and whole_ns > due_ns and index < last:
            return
        if self.planned.kind == "torn" and index in sent.begun and index < last - PATIENCE_TR and whole_ns is None:
            names = sent.begun[index]
            if not any(name.lstrip(".").removesuffix(".part") in self.text for name in names) and f"volume {index}" not in self.text:
                self.blame(f"volume {index} was never completed, and the session names neither it nor its file")

    # --- tables and images ----------------------------------------------------------------------------------------------------------

    def _table(self, name: str) -> list[dict[str, str]]:
        with (self.played.out / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    def _check_tables(self) -> None:
        out = self.played.out
        ended = self.recorded.log[-1] is self.recorded.end
        absent = [name for name in TABLES if not (out / name).exists()]
        if absent:
            if ended:
                self.blame(f"{', '.join(absent)} not written")
            return
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(out / LOG, folder)
            finalise(Path(folder))
            if ended:
                follow = [name for name in TABLES if (Path(folder) / name).read_bytes() != (out / name).read_bytes()]
                self.outcome.problems += [f"{name} does not follow from the log" for name in follow]
        rows = Counter(int(row["volume"]) for row in self._table("motion.tsv"))
        recorded = {r.index for r in self.recorded.records(VolumeRecord)}
        if any(n > 1 for n in rows.values()):
            self.blame(f"motion.tsv: several rows of volumes {[k for k, n in rows.items() if n > 1]}")
        lacking = recorded - set(rows)
        orderly = all(part.ended_well for part in self.parts)
        if set(rows) - recorded or (lacking and orderly):
            self.blame(f"motion.tsv: no row of volumes {sorted(lacking)}, rows without volume {sorted(set(rows) - recorded)}")
        summary = json.loads((out / "summary.json").read_text())
        if ended and orderly:
            said = summary["volumes"]
            received = self.outcome.received + self.outcome.doubtful
            if (said["received"], said["lost"]) != (received, len(recorded) - received):
                self.blame(f"the summary says {said}, received were {received} of {len(recorded)}")
            if said["late"] != self.outcome.late:
                self.blame(f"the summary says {said['late']} late, {self.outcome.late} came late")
            shown = sum(len(sent.seen) for sent in self.sent[: len(self.parts)])
            if summary["images"]["shown"] != shown:
                self.blame(f"the summary says that {summary['images']['shown']} images were shown, {shown} were seen")

    def _pictures(self) -> Iterator[tuple[int, str]]:
        """Part and pixels of every image that was shown, as the log has them."""
        painted = {(r.generation, r.candidate): r.sha256 for r in self.recorded.records(ImageRecord)}
        for number, part in enumerate(self.parts):
            for onset in part.events(EventKind.ONSET):
                yield number, painted.get((onset.generation, onset.candidate), "")

    def _check_images(self) -> None:
        made = [*self.recorded.records(LatentRecord), *self.recorded.records(ImageRecord)]
        named = Counter((r.type, r.generation, r.candidate) for r in made)
        onsets = [(r.generation, r.candidate) for r in self.recorded.events(EventKind.ONSET)]
        named.update(("onset", *image) for image in onsets)
        self.outcome.problems += [f"{what} of image {g}/{c} {n} times" for (what, g, c), n in named.items() if n > 1]
        asked = [(r.generation, r.candidate) for r in self.recorded.records(LatentRecord)]
        if self.outcome.status == "completed" and asked != onsets:
            self.blame(f"asked for {asked}, shown {onsets}")
        shown = list(self._pictures())
        for number, part in enumerate(self.parts):
            logged = [sha for own, sha in shown if own == number]
            seen = self.sent[number].seen
            if logged != seen[: len(logged)] or (part.ended_well and len(logged) != len(seen)):
                self.blame(f"part {number + 1}: {len(seen)} pictures were seen, {len(logged)} are recorded, or others")


def check(planned: Scenario, played: Played) -> Outcome:
    """Find what is wrong with a session that was played, and count its volumes."""
    return _Checked(planned, played).run()
