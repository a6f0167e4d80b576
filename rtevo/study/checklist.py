"""The CRED-nf checklist, filled in as far as possible from a study's records.

T. Ros and others 2020, Consensus on the reporting and experimental design of clinical and cognitive-behavioural neurofeedback studies
(CRED-nf checklist), Brain 143:1674-1685, doi:10.1093/brain/awaa009. Items have its numbers; the wording is ours.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rtevo.report.gather import Session
from rtevo.report.methods import methods

if TYPE_CHECKING:
    from rtevo.study.group import Group

__all__ = ["ITEMS", "SOURCE", "Item", "checklist"]

SOURCE = "doi:10.1093/brain/awaa009"
_NUMBERS = re.compile(r" \[[\d, ]+\]")  # of references, which are listed in the run's report
UNKNOWN = "not known to rtevo: fill in"
ITEMS = {
    "1a": ("Before the experiment", "protocol and analysis registered beforehand"),
    "1b": ("Before the experiment", "sample size, and why"),
    "2a": ("Control groups", "control groups or conditions"),
    "2b": ("Control groups", "double blinding, where the design allows it"),
    "2c": ("Control groups", "blinding of those who rate outcomes and of those who analyse"),
    "2d": ("Control groups", "whether participants and experimenters stayed blind, and how this was assessed"),
    "2e": ("Control groups", "clinical studies: a group with standard care as the benchmark"),
    "3a": ("Control measures", "psychosocial factors (motivation, expectation, effort, mood)"),
    "3b": ("Control measures", "whether participants were given a strategy"),
    "3c": ("Control measures", "the strategies that participants used"),
    "3d": ("Control measures", "online processing, and correction of artifacts"),
    "3e": ("Control measures", "artifacts compared between conditions and groups"),
    "4a": ("Feedback", "how the fed-back feature was extracted online"),
    "4b": ("Feedback", "schedule of reinforcement, and why"),
    "4c": ("Feedback", "modality and content"),
    "4d": ("Feedback", "all brain variables that were fed back, as participants received them"),
    "4e": ("Feedback", "hardware and software"),
    "5a": ("Outcome: brain", "regulation success, by the fed-back signal"),
    "5b": ("Outcome: brain", "courses within and between sessions; rest or contrasts before and after"),
    "5c": ("Outcome: brain", "experimental against control group, by a test"),
    "6a": ("Outcome: behaviour", "clinically or behaviourally meaningful measures, defined beforehand, and whether they were reached"),
    "6b": ("Outcome: behaviour", "correlation of regulation success with behaviour"),
    "7a": ("Data", "materials, code, raw data and final values in an open repository"),
}


@dataclass(frozen=True)
class Item:
    """One item.

    Parameters
    ----------
    number, domain, asks : str
    answer : str
        The known answer.
    missing : str
        The part to fill in; empty: none.
    """

    number: str
    domain: str
    asks: str
    answer: str
    missing: str


def checklist(group: Group, session: Session | None) -> list[Item]:
    """Fill in the checklist.

    Parameters
    ----------
    group : Group
    session : Session or None
        A counting run, whose settings describe the methods; None if none can be read.
    """
    known = {**_design(group), **_outcome(group), **(_feedback(session) if session is not None else {})}
    return [Item(number, domain, asks, *known.get(number, ("", UNKNOWN))) for number, (domain, asks) in ITEMS.items()]


def _design(group: Group) -> dict[str, tuple[str, str]]:
    """Return the answers about arms and blinding."""
    analysis = group.analysis
    fixed = (
        f"Fixed in the study file before the first participant: {analysis.summary} of each participant, two-sided level {analysis.level:g}."
    )
    numbers = Counter(group.arms.values())
    arms = (
        "Arms: " + ", ".join(f"{arm} ({n} participants)" for arm, n in sorted(numbers.items())) + "."
        if numbers
        else f"{len(group.participants)} participants; their arms are sealed."
    )
    blind = (
        "Arms were drawn once and sealed; rtevo shows them to no one before they are unsealed, and presents pictures in the same way in "
        "all arms."
    )
    return {
        "1a": (fixed, "where the protocol is registered"),
        "1b": (f"{len(group.participants)} participants.", "why so many (rtevo study plan simulates the power)"),
        "2a": (arms, "" if numbers else "the arms, once they are unsealed"),
        "2b": (blind, "who else could know the arms"),
        "2c": (
            "The outcome is computed from the record by a fixed rule, without a rater. The report shows no arms before unsealing.",
            "",
        ),
    }


def _feedback(session: Session) -> dict[str, tuple[str, str]]:
    """Return the answers about feedback, from the settings of a run; without hints to its arm."""
    words = {title: _NUMBERS.sub("", text) for title, text in methods(session)[0]}
    settings, packages = session.settings, session.provenance.get("packages", {})
    evolution, shown = settings["evolution"], settings["presentation"]
    schedule = (
        f"Each score changes which images come next ({evolution['strategy']}, {evolution['schedule']}; {evolution['population']} images a "
        f"generation); the participant is shown no reward."
    )
    content = f"Visual: a picture for {shown['image_s']:g} s, then {shown['washout_s']:g} s of fixation. {words['Images']}"
    machine = (
        f"{session.provenance.get('processor', 'processor not recorded')}; GPU: {'; '.join(session.provenance.get('gpus', [])) or 'none'}"
    )
    software = ", ".join(f"{name} {version}" for name, version in packages.items())
    return {
        "3d": (words["Realignment and quality"], ""),
        "4a": (words["Response estimates"], ""),
        "4b": (schedule, "why this schedule"),
        "4c": (content, "the instructions to participants about the pictures"),
        "4d": ("Every score and its standard error are in images.csv and in the record of each run.", ""),
        "4e": (
            f"rtevo {session.summary['rtevo']}, Python {session.provenance.get('python', '?')}, {software}. {machine}.",
            "scanner, coil, screen",
        ),
    }


def _outcome(group: Group) -> dict[str, tuple[str, str]]:
    """Return where the report shows the outcome."""
    compared = "; ".join(
        f"{each.treated} against {each.control}: {each.effect.estimate:+.2f} (p = {each.effect.p:.3g})" for each in group.effects
    )
    artifacts = "; ".join(
        f"{each.what}, {each.treated} against {each.control}: {each.effect.estimate:+.3f} (p = {each.effect.p:.3g})"
        for each in group.motion
    )
    sealed = "the arms are sealed"
    number = group.participants["summary"].notna().sum()
    return {
        "3e": (artifacts, "" if artifacts else sealed),
        "5a": (f"The {group.analysis.summary} of each of {number} participants is in participants.csv.", ""),
        "5b": ("Courses within and between runs are in the figure and in trajectories.csv.", "rest or contrasts before and after, if any"),
        "5c": (f"Randomisation test over the sealed allocation: {compared}." if compared else "", "" if compared else sealed),
        "7a": ("rtevo study export writes the study as one BIDS dataset.", "where it is available"),
    }
