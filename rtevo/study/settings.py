"""The session file of a run: its kind's file, completed from the study, so that nothing is typed in the control room."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from rtevo.config import Config, absolute, dump, load, overrides_of
from rtevo.errors import StudyError
from rtevo.record import RecordedSession, load_secret, seal
from rtevo.record.sealing import LENGTH_BYTES
from rtevo.session.course import fitness_of
from rtevo.study.allocation import KEY
from rtevo.study.file import SHOWING
from rtevo.study.loading import Planned, Study

__all__ = ["decoder_of", "donors", "of_kind", "session_config", "write_session"]

SCORES = 4096  # sealed files of scores hold a multiple of this number


def of_kind(kind: str) -> dict[tuple[str, str], Any]:
    """Return settings that follow from the kind of a run alone: a localizer's decoders need not exist yet."""
    return {} if kind in SHOWING else {("session", "task"): "localizer"}


def session_config(study: Study, planned: Planned, number: int, out: Path, scores: Path | None = None) -> Config:
    """Return the settings of a run.

    Parameters
    ----------
    study : Study
    planned : Planned
        A run of any kind but `fit`.
    number : int
        Number of the run in its visit.
    out : Path
        Its folder, which does not exist yet.
    scores : Path, optional
        Sealed file of scores, see :func:`write_session`.

    Raises
    ------
    ConfigError, StudyError
        With all mistakes.
    """
    who, visit, file = planned.participant, planned.visit, study.file
    named = not study.overridden(who, "identity")
    settings: dict[tuple[str, str], Any] = {
        **of_kind(planned.kind),
        ("session", "participant"): who,
        ("session", "session"): visit.label,
        ("session", "run"): number,
        ("session", "seed"): _seed(study, who, visit.label, number),
        ("record", "out"): str(out),
        ("acquisition", "patient_id"): file.identity.patient_id.replace("{participant}", who) if named else "",
        ("acquisition", "study_date"): file.identity.study_date if named else "",
        ("acquisition", "anonymous"): file.identity.anonymous,
    }
    path = file.session_file(planned.kind, visit)
    told = overrides_of(path, checked=False)
    if told.get(("acquisition", "source"), "simulate") == "simulate":  # another simulated participant each time
        settings["simulation", "participant_seed"] = told.get(("simulation", "participant_seed"), 1) + study.participants.index(who)
    if planned.kind in SHOWING:
        settings |= _showing(study, planned)
    if planned.kind == "loop":
        settings |= _loop(study, planned, scores)
    return absolute(load(path, settings))


def _showing(study: Study, planned: Planned) -> dict[tuple[str, str], Any]:
    """Return the visit's settings that replace those of the session file."""
    visit, file = planned.visit, study.file
    found = {
        ("decoder", "folder"): decoder_of(study, planned),
        ("evolution", "pca"): visit.latent_space and str(file.path(visit.latent_space)),
        ("generator", "unclip_model_path"): visit.model and str(file.path(visit.model)),
        ("decoder", "objective"): study.objective(planned.participant, visit),
    }
    used = {key: value for key, value in found.items() if value}
    alike = {("evolution", "probe_every"): file.study.probe_every, ("generator", "noise_seed"): _seed(study) or 1}
    return {**used, **alike, ("session", "condition"): "ratings"}


def _loop(study: Study, planned: Planned, scores: Path | None) -> dict[tuple[str, str], Any]:
    """Return the settings of blinding, and the run from which evolution continues."""
    found: dict[tuple[str, str], Any] = {
        ("session", "condition"): "blinded",
        ("evolution", "blinding_key"): str(study.folder / KEY),
        ("evolution", "blinding_secret"): str(study.file.path(study.file.study.secret)),
        ("evolution", "sealed"): not study.unsealed,
    }
    if scores is not None:
        found["evolution", "yoked_to"] = str(scores)
    plan, goal = study.planned(planned.participant), study.objective(planned.participant, planned.visit)
    earlier = [
        each for each in plan[: plan.index(planned)] if each.kind == "loop" and study.objective(each.participant, each.visit) == goal
    ]
    counting = [attempt for each in earlier for attempt in study.tried(each.slot) if attempt.counts]
    if counting and study.file.study.evolution == "continue":
        found["evolution", "continue_from"] = str(study.folder / counting[-1].folder)
    return found


def _seed(study: Study, *what: object) -> int:
    """Return a seed that depends on the study and on its purpose."""
    text = "\t".join(map(str, (study.drawn["id"], *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def decoder_of(study: Study, planned: Planned) -> str:
    """Return the folder of a run's decoder; empty: the session file's.

    Raises
    ------
    StudyError
        The participant's fit has not passed, and no override was signed.
    """
    if planned.visit.decoder:
        return str(study.file.path(planned.visit.decoder))
    who, plan = planned.participant, study.planned(planned.participant)
    fits = [each for each in plan[: plan.index(planned)] if each.kind == "fit"]
    if not fits:
        return ""
    tried = study.tried(fits[-1].slot)
    passed = [attempt for attempt in tried if attempt.counts]
    if not passed and study.overridden(who, "fit"):  # then the latest fit with a decoder, of any visit
        own = [attempt for each in fits for attempt in study.tried(each.slot)]
        passed = [attempt for attempt in own if (study.folder / attempt.folder).is_dir()]
    if not passed:
        why = tried[-1].excluded if tried else "it has not been made"
        raise StudyError(
            f"{planned}: expected a fit that has passed in visit {fits[-1].visit.label}, found none: {why}. `next {who} --again N` repeats "
            f"run N of a visit, as another localizer and the fit; or sign for it: `override {who} --what fit --by NAME --why TEXT`"
        )
    return str(study.folder / passed[-1].folder)


# --- scores of others -------------------------------------------------------------------------------------------------------------------


def donors(study: Study, planned: Planned) -> list[Path]:
    """Return the runs whose scores a yoked participant may receive, the own partner's first.

    The k-th yoked participant's partner is the k-th brain participant; if the partner's run does not count, another of an earlier block.
    """
    arms, blocks = study.concealed_arms(), study.blocks
    earlier = [who for block in blocks[: _block(study, planned.participant)] for who in block]
    brains = [who for who in earlier if arms[who] == "brain"]
    yoked = [who for who in study.participants[: study.participants.index(planned.participant)] if arms[who] == "yoked"]
    first = len(yoked) % len(brains) if brains else 0
    slots = [(who, *planned.slot[1:]) for who in (*brains[first:], *brains[:first])]
    return [study.folder / attempt.folder for slot in slots for attempt in study.tried(slot) if attempt.counts]


def _block(study: Study, participant: str) -> int:
    """Number of a participant's block, 0 = first."""
    return next(number for number, block in enumerate(study.blocks) if participant in block)


def write_session(study: Study, planned: Planned, number: int, out: Path) -> Path:
    """Write the session file of a run beside its folder, and, if the study has the arm yoked, a sealed file of scores.

    Every participant gets such a file, of the same length; only a yoked participant's file holds scores.

    Returns
    -------
    Path
        The session file.

    Raises
    ------
    ConfigError, StudyError
        With all mistakes.
    """
    out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scores = None
    if planned.kind == "loop" and "yoked" in study.file.study.arms:
        scores = out.with_suffix(".scores")
        scores.touch(mode=0o600)
    config = session_config(study, planned, number, out, scores)
    if scores is not None:
        _write_scores(study, planned, scores, config.evolution.generations * config.evolution.population)
    like = study.file.session_file(planned.kind, planned.visit).read_text(encoding="utf-8")
    path = out.with_suffix(".toml")
    path.write_text(dump(config, like), encoding="utf-8")
    return path


def _write_scores(study: Study, planned: Planned, path: Path, images: int) -> None:
    """Write the sealed file of scores for this many images."""
    known = (fitness_of(RecordedSession(folder)) for folder in donors(study, planned))
    found = [scores for scores in known if np.isfinite(scores).any()]
    if _block(study, planned.participant) and not found:  # for every arm, so that the error reveals none
        raise StudyError(f"{planned}: expected a run of the earlier blocks that it can be compared with, found none that counts")
    told = np.full(math.ceil(images / SCORES) * SCORES, np.nan, "<f8")
    if study.concealed_arms()[planned.participant] == "yoked":
        own = found[0][: len(told)]
        told[: len(own)] = own
    path.write_bytes(seal(told.tobytes(), load_secret(study.file.path(study.file.study.secret)), told.nbytes + LENGTH_BYTES))
