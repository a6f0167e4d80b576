"""Beginning of a study: check its file, draw arms and orders once, and seal both."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import numpy as np

from rtevo import __version__
from rtevo.config import load
from rtevo.errors import ConfigError
from rtevo.session.blinding import make_secret
from rtevo.study.allocation import KEY, draw, rotated, write_key
from rtevo.study.file import FILE, StudyFile, example, read
from rtevo.study.ledger import LEDGER, append
from rtevo.study.loading import Study
from rtevo.study.settings import of_kind

__all__ = ["new"]


def new(folder: Path) -> Study | None:
    """Write a study file as a start; if it exists, draw and seal the study.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.

    Returns
    -------
    Study or None
        None if a study file was written.

    Raises
    ------
    ConfigError
        With all mistakes in the file and in the session files that it names; or the study is sealed already.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / FILE).exists():
        (folder / FILE).write_text(example(folder.resolve().name), encoding="utf-8")
        return None
    for name in (LEDGER, KEY):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name}: expected no such file, found one: the study is sealed already, and can be drawn only once")
    file = read(folder / FILE)
    _check_sessions(file)
    rng = np.random.default_rng()  # from the system's entropy: nobody can repeat the draw
    design, secret = file.study, make_secret(file.path(file.study.secret))
    write_key(folder / KEY, draw(design.participants, design.arms, rng), [visit.label for visit in file.visits], secret)
    append(
        folder,
        "drawn",
        rtevo=__version__,
        id=secrets.token_hex(8),
        file=file.text,
        key_sha256=hashlib.sha256((folder / KEY).read_bytes()).hexdigest(),
        order=rotated(design.counterbalance, design.participants, rng),
    )
    return Study(folder)


def _check_sessions(file: StudyFile) -> None:
    """Check that every session file can be used.

    Raises
    ------
    ConfigError
        With all mistakes.
    """
    mistakes: list[str] = []
    fitted = False
    for visit in file.visits:
        fitted = fitted or "fit" in visit.runs
        for kind in dict.fromkeys(kind for kind in visit.runs if kind != "fit"):
            later = {("decoder", "folder"): str(file.folder)} if visit.decoder or fitted else {}
            try:
                config = load(path := file.session_file(kind, visit), {**of_kind(kind), **later})
                if kind == "loop" and config.evolution.stop_gain:
                    mistakes.append(
                        f"{path.name} [evolution] stop_gain: expected 0 in a study, because the length of a run would depend on its arm"
                    )
                if kind == "loop" and config.evolution.strategy == "direct" and "yoked" in file.study.arms:
                    mistakes.append(
                        f"{path.name} [evolution] strategy: expected 'surrogate' in a study with the arm yoked, where scores "
                        "are handed on, got 'direct', which looks at volumes"
                    )
            except ConfigError as error:
                mistakes += error.mistakes
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
