"""Reading a study: its participants, its runs, which count, and one table of all images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rtevo.errors import StudyError
from rtevo.record import LOG, RecordedSession
from rtevo.study.allocation import KEY, arms_of, blocks_of
from rtevo.study.file import FILE, SHOWING, StudyFile, Visit, read
from rtevo.study.ledger import Attempt, Entry, Slot, attempts_of, entries

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Planned", "Study", "StudyRun", "folder_of", "load"]

COLUMNS = ("generation", "candidate", "probe", "onset", "score", "score_se", "fitness", "true_response", "rating")
OF_TRIALS = {"score_se": "se"}  # names of the trials' columns in a study's table


@dataclass(frozen=True)
class Planned:
    """A run in the study file's plan.

    Parameters
    ----------
    participant : str
    visit : Visit
    number : int
        Number in the visit, from 1.
    kind : str
    """

    participant: str
    visit: Visit
    number: int
    kind: str

    @property
    def slot(self) -> Slot:
        """The run's key in the ledger."""
        return self.participant, self.visit.label, self.number

    def __str__(self) -> str:
        return f"participant {self.participant}, visit {self.visit.label}, run {self.number} of {len(self.visit.runs)} ({self.kind})"


@dataclass(frozen=True)
class StudyRun:
    """A run that has begun.

    Parameters
    ----------
    participant, visit : str
    run : int
        Its number in the visit, as in its folder's name: a repetition has a new number.
    kind : str
        ``scout``, ``localizer``, ``fit``, ``loop`` or ``ratings``.
    folder : Path
        The run's folder; of a fit, the decoder.
    status : str
        How it ended: ``completed``, ``stopped``, ``failed``, ``unscored``; ``begun`` if its end is not known.
    counts : bool
    excluded : str
        Why it does not count; empty if it counts.
    planned : int
        Number of the run in the visit's plan; repetitions share it.
    """

    participant: str
    visit: str
    run: int
    kind: str
    folder: Path
    status: str
    counts: bool
    excluded: str
    planned: int


class Study:
    """A study, read from its folder.

    Parameters
    ----------
    folder : Path

    Attributes
    ----------
    file : StudyFile
        The sealed study file.
    ledger : list of Entry

    Raises
    ------
    StudyError
        There is none, or what was sealed has been changed since.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()
        self.ledger: list[Entry] = entries(self.folder)
        if not self.ledger or self.ledger[0].kind != "drawn":
            raise StudyError(f"{self.folder}: expected a ledger that begins with the draw")
        self.drawn = self.ledger[0]
        self.file: StudyFile = read(self.folder / FILE, self.drawn["file"])
        self._check_sealed()

    def __repr__(self) -> str:
        state = "unsealed" if self.unsealed else "sealed"
        counting = sum(run.counts for run in self.runs)
        return (
            f"Study({str(self.folder)!r}): {self.file.study.name}, {state}\n"
            f"  {len(self.participants)} participants, {len(self.runs)} runs, {counting} of them count"
        )

    def _check_sealed(self) -> None:
        """Check that file and key are the sealed ones."""
        for name, expected in ((FILE, self.file.sha256), (KEY, self.drawn["key_sha256"])):
            path = self.folder / name
            found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
            if found != expected:
                raise StudyError(
                    f"{path}: expected the file sealed on {self.drawn['at']} (SHA-256 {expected[:12]}), found {found[:12]}: restore it; "
                    f"study.jsonl's first record holds the study file"
                )

    # --- who ------------------------------------------------------------------------------------------------------------------------------

    @property
    def participants(self) -> list[str]:
        """Participants' labels, in the order of the draw."""
        return list(self.file.study.participants)

    @property
    def unsealed(self) -> bool:
        """Whether the arms are unsealed."""
        return any(entry.kind == "unsealed" for entry in self.ledger)

    def arms(self) -> dict[str, str]:
        """Return each participant's arm.

        Raises
        ------
        StudyError
            The study is sealed.
        """
        if not self.unsealed:
            raise StudyError(
                f"{self.folder}: the study is sealed; `rtevo study unseal` opens it permanently, and records that in the ledger"
            )
        return self.concealed_arms()

    def concealed_arms(self) -> dict[str, str]:
        """Return each participant's arm, also while the study is sealed; callers must not show it."""
        return arms_of(self.folder / KEY, self.file.path(self.file.study.secret))

    def pairs(self) -> dict[str, str]:
        """Return each participant's block of the draw: arms are exchangeable only within blocks."""
        return {who: f"block-{number:02d}" for number, block in enumerate(self.blocks, 1) for who in block}

    @property
    def blocks(self) -> list[list[str]]:
        """Participants in blocks, see :mod:`rtevo.study.allocation`."""
        return blocks_of(self.file.study.participants, self.file.study.arms)

    def left(self, participant: str) -> bool:
        """Whether a participant has left the study."""
        return self.overridden(participant, "left")

    def overridden(self, participant: str, what: str) -> bool:
        """Return whether an override was signed for a participant."""
        return any(e.kind == "override" and e["participant"] == participant and e["what"] == what for e in self.ledger)

    # --- runs -----------------------------------------------------------------------------------------------------------------------------

    def planned(self, participant: str) -> list[Planned]:
        """Return the participant's runs in the study file's plan.

        Raises
        ------
        StudyError
            No participant has this label.
        """
        if participant not in self.file.study.participants:
            raise StudyError(f"participant {participant!r}: expected one of the study's: {', '.join(self.participants)}")
        return [Planned(participant, v, n, kind) for v in self.file.visits for n, kind in enumerate(v.runs, 1)]

    @cached_property
    def attempts(self) -> list[Attempt]:
        """All attempts in the ledger."""
        return [attempt for attempt in attempts_of(self.ledger) if attempt.status != "not begun"]

    @property
    def runs(self) -> list[StudyRun]:
        """All runs that have begun, in order; the end of a killed run is not known."""
        return [
            StudyRun(
                a.participant, a.visit, a.run, a.kind, self.folder / a.folder, a.status, a.counts,
                a.excluded or ("" if a.counts else "it was interrupted"), a.planned,
            )
            for a in self.attempts
        ]  # fmt: skip

    def tried(self, slot: Slot) -> list[Attempt]:
        """Return the attempts of a planned run."""
        return [attempt for attempt in self.attempts if attempt.slot == slot]

    def passed_over(self, slot: Slot) -> bool:
        """Return whether the operator continued without a counting run."""
        return any(e.kind == "passed_over" and (e["participant"], e["visit"], e["planned"]) == slot for e in self.ledger)

    def state(self, planned: Planned) -> str:
        """Return the state of a planned run: ``open``, ``counts``, ``excluded`` (complete, does not count), ``passed over``, ``broken``."""
        tried = self.tried(planned.slot)
        if any(attempt.counts for attempt in tried):
            return "counts"
        if self.passed_over(planned.slot):
            return "passed over"
        if not tried:
            return "open"
        return "excluded" if tried[-1].status == "completed" else "broken"

    def settled(self, planned: Planned) -> bool:
        """Return whether no participant waits for a planned run any more."""
        return self.left(planned.participant) or self.state(planned) not in ("open", "broken")

    def following(self, participant: str) -> Planned | None:
        """Return the participant's next run; None: none."""
        if self.left(participant):
            return None
        return next((planned for planned in self.planned(participant) if not self.settled(planned)), None)

    def objective(self, participant: str, visit: Visit) -> str:
        """Return the objective of a visit; empty: the session file's."""
        order = self.drawn.fields.get("order", {}).get(participant, [])
        turn = [v.label for v in self.file.visits].index(visit.label)
        return visit.objective or (order[turn % len(order)] if order else "")

    # --- images ---------------------------------------------------------------------------------------------------------------------------

    def table(self) -> DataFrame:
        """Return a row for each image of every run that shows images.

        Columns: participant, visit, run, kind, generation, candidate, probe, onset (s), score, se, rating, true_response (if simulated),
        counts, excluded; and if the study is unsealed, fitness, arm and pair.
        """
        from pandas import DataFrame, concat

        shown = ("fitness",) if self.unsealed else ()
        found = []
        for run, session in self.sessions():
            trials = session.trials
            names = [name for name in COLUMNS if name in trials and (name != "fitness" or shown)]
            own = trials[names].rename(columns=OF_TRIALS)
            for place, name in enumerate(("participant", "visit", "run", "kind")):
                own.insert(place, name, getattr(run, name))
            found.append(own.assign(counts=run.counts, excluded=run.excluded))
        table = concat(found, ignore_index=True) if found else DataFrame({"participant": [], "visit": [], "run": []})
        if self.unsealed:
            table = table.assign(arm=table["participant"].map(self.arms()), pair=table["participant"].map(self.pairs()))
        return table

    def sessions(self) -> Iterator[tuple[StudyRun, RecordedSession]]:
        """Yield the runs that show images and have a log."""
        for run in self.runs:
            if run.kind in SHOWING and (run.folder / LOG).exists():
                yield run, RecordedSession(run.folder, damaged=True)


def folder_of(given: Path | None) -> Path:
    """Return the study's folder: the named one, the current one, or one above it.

    Raises
    ------
    StudyError
        There is none.
    """
    if given is not None:
        return given
    here = Path.cwd()
    found = next((folder for folder in (here, *here.parents) if (folder / FILE).is_file()), None)
    if found is None:
        raise StudyError(f"{here}: expected a study's folder (with {FILE}), or a folder in it, found none: name it with --study")
    return found


def load(folder: Path | str) -> Study:
    """Read a study.

    Raises
    ------
    StudyError
        There is none, or what was sealed has been changed since.
    """
    return Study(folder)
