"""Allocation of participants to arms: drawn once, in blocks, and sealed in a blinding key.

A block has each arm once, in random order. If there is an arm yoked, the first block lacks it: a yoked participant needs the scores of a
brain participant of an *earlier* block. All participants wait for the earlier blocks, so that waiting reveals nothing. The key has the form
of :mod:`rtevo.session.blinding`, with one row for each participant and visit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rtevo.errors import ConfigError, StudyError
from rtevo.session.blinding import condition_of, load_secret, read_key, scramble

__all__ = ["KEY", "arms_of", "blocks_of", "draw", "rotated", "write_key"]

KEY = "allocation.tsv"


def blocks_of(participants: Sequence[str], arms: Sequence[str]) -> list[list[str]]:
    """Divide the participants into blocks, in their order; blocks reveal no arm.

    Parameters
    ----------
    participants : sequence of str
    arms : sequence of str
    """
    size, rest, blocks = len(arms), list(participants), []
    sizes = [size - 1] if "yoked" in arms else []
    while rest:
        n = sizes.pop(0) if sizes else size
        blocks.append(rest[:n])
        rest = rest[n:]
    return blocks


def draw(participants: Sequence[str], arms: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Draw each participant's arm.

    Parameters
    ----------
    participants, arms : sequence of str
    rng : numpy.random.Generator

    Returns
    -------
    dict of str to str
    """
    found: dict[str, str] = {}
    for number, block in enumerate(blocks_of(participants, arms)):
        own = [arm for arm in arms if number or arm != "yoked"]
        order = [own[k] for k in rng.permutation(len(own))]
        found.update(zip(block, order, strict=False))  # the last block may be incomplete
    return found


def rotated(values: Sequence[str], participants: Sequence[str], rng: np.random.Generator) -> dict[str, list[str]]:
    """Draw the order of values for each participant: cyclic Latin squares, so that each value is first, second, ... equally often.

    Parameters
    ----------
    values, participants : sequence of str
    rng : numpy.random.Generator
    """
    found: dict[str, list[str]] = {}
    rows: list[int] = []
    for participant in participants if values else ():
        rows = rows or [int(k) for k in rng.permutation(len(values))]
        first = rows.pop()
        found[participant] = [*values[first:], *values[:first]]
    return found


def write_key(path: Path, arms: dict[str, str], visits: Sequence[str], secret: bytes) -> None:
    """Write the sealed arms, like `rtevo evolve blind`; only the owner can write the file.

    Raises
    ------
    ConfigError
        The file exists already, or cannot be made.
    """
    rows = [f"{who}\t{visit}\t{scramble(arm, who, visit, secret)}" for who, arm in arms.items() for visit in visits]
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write("\n".join(["participant\tsession\tcode", *rows]) + "\n")
    except OSError as problem:
        raise ConfigError(f"{path}: expected a new file in an existing folder: {problem.strerror}") from None


def arms_of(key: Path, secret: Path) -> dict[str, str]:
    """Open the sealed arms.

    Raises
    ------
    ConfigError, StudyError
        Key or secret cannot be read, or do not belong together.
    """
    opened, found = load_secret(secret), {}
    for (participant, visit), code in read_key(key).items():
        try:
            found[participant] = condition_of(code, participant, visit, opened)
        except ValueError as problem:
            raise StudyError(f"{key}: the code of participant {participant!r}, visit {visit!r} {problem}") from None
    return found
