"""The study file: ``study.toml`` -> frozen dataclasses, all mistakes at once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import tomlkit
import tomllib

from rtevo.config import section
from rtevo.config.keys import LABEL_RULE, LONGEST_LABEL, at_least, is_label, key, one_of
from rtevo.errors import ConfigError
from rtevo.objective import parse_objective
from rtevo.outside import read_regular, shown
from rtevo.session.blinding import CONDITIONS
from rtevo.study.analysis import Analysis

__all__ = ["FILE", "KINDS", "SHOWING", "Design", "Exclusion", "Files", "Fit", "Identity", "StudyFile", "Visit", "example", "read"]

FILE = "study.toml"
KINDS = ("scout", "localizer", "fit", "loop", "ratings")
SHOWING = ("loop", "ratings")  # kinds whose images evolve
MOST = 1 << 20  # bytes of a study file


@dataclass(frozen=True)
class Design:
    """Participants, arms and the comparison."""

    name: str = key("", "name of the study", "a name", bool)
    participants: tuple[str, ...] = key(
        (), "BIDS labels, in the order of the draw", f"labels ({LABEL_RULE})", lambda x: len(x) > 0 and all(map(is_label, x))
    )
    arms: tuple[str, ...] = key(
        ("brain", "sham"),
        "what drives evolution, drawn for each participant in blocks that have each arm once: brain, sham, yoked (the scores of a "
        "brain participant of an earlier block), random",
        "some of " + ", ".join(CONDITIONS),
        lambda x: len(x) > 0 and set(x) <= set(CONDITIONS),
    )
    secret: str = key(
        "secret",
        "file with the secret that encrypts the arms, made if it does not exist; its readers can find out the arms: keep it where the "
        "operators do not look; the sessions' account must be able to read it",
        "a path",
        bool,
    )
    evolution: str = key(
        "continue", "a participant's next loop: continue (from the last one that counts), fresh", **one_of("continue", "fresh")
    )
    probe_every: int = key(
        6,
        "loops: one image in this many is a probe, the same in all runs; without probes the absolute gain across runs is not identified",
        "0 or >= 2",
        lambda x: x == 0 or x >= 2,
    )
    counterbalance: tuple[str, ...] = key(
        (), "objectives ([decoder] objective) that alternate over the visits; the first is drawn, equally often; empty = none"
    )


@dataclass(frozen=True)
class Files:
    """Session files of each kind of run: settings common to all participants."""

    loop: str = key("", "session file of the loops")
    ratings: str = key("", "session file of the runs in which ratings drive evolution")
    localizer: str = key("", "session file of the localizers")
    scout: str = key(
        "", "session file of the scouts: localizers without a decoder, to check that volumes arrive and how much a participant moves"
    )


@dataclass(frozen=True)
class Visit:
    """One stay in the scanner, and its settings that replace those of the session files."""

    label: str = key("", "BIDS session label", LABEL_RULE, lambda x: bool(x) and is_label(x))
    runs: tuple[str, ...] = key(
        (), "kinds of its runs, in order", "some of " + ", ".join(KINDS), lambda x: len(x) > 0 and set(x) <= set(KINDS)
    )
    session: str = key("", "session file of its loops and ratings, instead of that of [files]")
    decoder: str = key("", "decoder folder; empty = that of the participant's own fit, or without a fit the session file's")
    latent_space: str = key("", "latent space ([evolution] pca)")
    model: str = key("", "image model ([generator] unclip_model_path)")
    objective: str = key("", "objective to maximise ([decoder] objective)")


@dataclass(frozen=True)
class Fit:
    """Settings of a fit, and when it has passed."""

    target: str = key("", "rtevo decode fit --target; empty = a map for each category")
    auc: float = key(0.7, "smallest area under the curve over held-out blocks", "0 to 1", lambda x: 0 <= x <= 1)
    reliability: float = key(
        0.0, "smallest correlation of the map's scores with the images in held-out blocks", "0 to 1", lambda x: 0 <= x <= 1
    )


@dataclass(frozen=True)
class Exclusion:
    """When a run does not count; fixed beforehand, 0 = no rule."""

    framewise_displacement_mm: float = key(0.5, "largest mean framewise displacement, mm", *at_least(0))
    spikes: float = key(0.2, "largest share of volumes that are spikes", "0 to 1", lambda x: 0 <= x <= 1)
    lost: float = key(0.1, "largest share of volumes that were lost or could not be aligned", "0 to 1", lambda x: 0 <= x <= 1)
    reliability: float = key(0.0, "loops: smallest reliability of the scores", "0 to 1", lambda x: 0 <= x <= 1)


@dataclass(frozen=True)
class Identity:
    """Whether the scanner's headers must name the participant and the day."""

    patient_id: str = key("", "expected PatientID; {participant} stands for the label, * and ? are permitted; empty = not checked")
    study_date: str = key("", "expected study date: today; empty = not checked", "today or empty", lambda x: x in ("", "today"))
    anonymous: str = key("accept", "headers without these fields: accept, refuse", **one_of("accept", "refuse"))


@dataclass(frozen=True)
class StudyFile:
    """A whole study file.

    Parameters
    ----------
    study : Design
    files : Files
    visits : tuple of Visit
    fit : Fit
    exclusion : Exclusion
    identity : Identity
    analysis : Analysis
    folder : Path
        Folder of relative paths.
    text : str
        The file's text.
    """

    study: Design = field(default_factory=Design)
    files: Files = field(default_factory=Files)
    visits: tuple[Visit, ...] = ()
    fit: Fit = field(default_factory=Fit)
    exclusion: Exclusion = field(default_factory=Exclusion)
    identity: Identity = field(default_factory=Identity)
    analysis: Analysis = field(default_factory=Analysis)
    folder: Path = Path()
    text: str = field(default="", repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def session_file(self, kind: str, visit: Visit) -> Path:
        """Return the session file of a kind of run in a visit."""
        named = (visit.session if kind in SHOWING else "") or getattr(self.files, kind)
        return self.folder / Path(named).expanduser()

    def path(self, name: str) -> Path:
        """Return a path in the file as a full path."""
        return (self.folder / Path(name).expanduser()).resolve()


_SECTIONS = {name: kind for name, kind in get_type_hints(StudyFile).items() if isinstance(kind, type) and is_dataclass(kind)}


def read(path: Path, text: str | None = None) -> StudyFile:
    """Read a study file.

    Parameters
    ----------
    path : Path
    text : str, optional
        The text when the study was sealed: files that it names need not exist any more. None: the present text.

    Raises
    ------
    ConfigError
        With all mistakes.
    """
    sealed = text is not None
    try:
        text = read_regular(path, MOST).decode("utf-8") if text is None else text
        tables: dict[str, Any] = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {shown(error)}") from None
    mistakes = [
        f"{path.name} [{name}]: unknown section; known: {', '.join(_SECTIONS)}, visits" for name in {*tables} - {*_SECTIONS, "visits"}
    ]
    made = {name: section(kind, tables.get(name, {}), f"{path.name} [{name}]", mistakes) for name, kind in _SECTIONS.items()}
    found = StudyFile(**made, visits=_visits(tables.get("visits", []), path.name, mistakes), folder=path.resolve().parent, text=text)
    mistakes += [] if sealed else _together(found, tables, path.name)
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _visits(tables: Any, origin: str, mistakes: list[str]) -> tuple[Visit, ...]:
    if not isinstance(tables, list) or not tables:
        mistakes.append(f"{origin} [[visits]]: expected at least one visit, found none")
        return ()
    return tuple(section(Visit, table, f"{origin} [[visits]] {number}", mistakes) for number, table in enumerate(tables, 1))


def _together(found: StudyFile, tables: Mapping[str, Any], origin: str) -> list[str]:
    """Find mistakes in combinations of keys, and missing files."""
    design, mistakes = found.study, []
    for where, name in (("study", "name"), ("study", "participants")):
        if name not in tables.get(where, {}):
            mistakes.append(f"{origin} [{where}] {name}: expected one, found none")
    for where, values in (
        ("[study] participants", design.participants),
        ("[study] arms", design.arms),
        ("[[visits]] label", tuple(visit.label for visit in found.visits)),
    ):
        if twice := [value for value, n in Counter(values).items() if n > 1]:
            mistakes.append(f"{origin} {where}: expected each once, found {twice[0]!r} more than once")
    if long := [label for label in design.participants if len(label) > LONGEST_LABEL]:
        mistakes.append(f"{origin} [study] participants: expected at most {LONGEST_LABEL} characters, got {len(long[0])}")
    if "yoked" in design.arms and "brain" not in design.arms:
        mistakes.append(f"{origin} [study] arms: expected the arm brain too, because yoked uses the scores of a brain participant")
    if 0 < len(design.participants) < len(design.arms):
        mistakes.append(
            f"{origin} [study] participants: expected at least one for each of {len(design.arms)} arms, got {len(design.participants)}"
        )
    if len(design.arms) > 1 and found.analysis.treated not in design.arms:
        mistakes.append(f"{origin} [analysis] treated: expected one of the arms ({', '.join(design.arms)}), got {found.analysis.treated!r}")
    mistakes += _objectives(found, origin) + _paths(found, origin)
    kinds = [kind for visit in found.visits for kind in visit.runs]
    if "fit" in kinds and "localizer" not in kinds[: kinds.index("fit")]:
        mistakes.append(f"{origin} [[visits]] runs: expected a localizer before the first fit, which uses localizers, found none")
    return mistakes


def _objectives(found: StudyFile, origin: str) -> list[str]:
    """Find invalid objectives."""
    mistakes = []
    for where, text in (
        *(("[study] counterbalance", text) for text in found.study.counterbalance),
        *((f"[[visits]] {n} objective", v.objective) for n, v in enumerate(found.visits, 1) if v.objective),
    ):
        try:
            parse_objective(text)
        except ValueError as problem:
            mistakes.append(f"{origin} {where}: {problem}")
    return mistakes


def _paths(found: StudyFile, origin: str) -> list[str]:
    """Find files and folders that do not exist."""
    mistakes = []
    for number, visit in enumerate(found.visits, 1):
        for name in ("decoder", "latent_space", "model"):
            value = getattr(visit, name)
            there = found.path(value).is_file() if name == "latent_space" else found.path(value).is_dir()
            if value and not there:
                mistakes.append(f"{origin} [[visits]] {number} {name}: expected an existing one, got {value!r}")
        for kind in dict.fromkeys(kind for kind in visit.runs if kind != "fit" and kind in KINDS):
            if not (visit.session and kind in SHOWING) and not getattr(found.files, kind):
                mistakes.append(f"{origin} [files] {kind}: expected a session file, because visit {visit.label} has such a run, found none")
            elif not (named := found.session_file(kind, visit)).is_file():
                mistakes.append(f"{origin}: session file of kind {kind}: expected an existing file, got {str(named)!r}")
    return list(dict.fromkeys(mistakes))


def example(name: str) -> str:
    """Return a commented study file with every key, as a start."""
    given: dict[str, Any] = {"name": name, "participants": ["01", "02", "03", "04"], "loop": "session.toml", "label": "1", "runs": ["loop"]}
    heads = {"study": Design, "files": Files, "[visits]": Visit, **_SECTIONS}
    lines = [
        "# An rtevo study. `rtevo study new FOLDER` draws and seals it; afterwards it must not change. Paths are relative to this file."
    ]
    for head, kind in heads.items():
        lines += ["", f"[{head}]  # {(kind.__doc__ or '').rstrip('.')}"]
        for spec in fields(kind):
            value = given.get(spec.name, list(spec.default) if isinstance(spec.default, tuple) else spec.default)
            value = "" if (kind, spec.name) == (Visit, "session") else value
            rule = spec.metadata["rule"]
            lines.append(f"# {spec.metadata['text']}" + (f" ({rule})" if rule else ""))
            lines.append(f"{spec.name} = {tomlkit.item(value).as_string()}")
    return "\n".join(lines) + "\n"
