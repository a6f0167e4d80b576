"""The decoder that a session means: one map, or an objective over several of one or several folders.

Several maps are one :class:`Decoder` with `maps` and a `goal`, so that whatever places, carries and checks a decoder does it with all of
them at once. The maps of further folders are brought to the first one's reference, by a placement found from the two references.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rtevo.decode.carry import carry, reorder, together
from rtevo.decode.folder import Decoder, maps_in
from rtevo.errors import DecoderError
from rtevo.objective import Goal, parse_objective
from rtevo.place import Verdict, place

__all__ = ["load_decoder"]


def load_decoder(
    folder: str | os.PathLike[str], name: str | None = None, objective: str = "", more: Sequence[str | os.PathLike[str]] = ()
) -> Decoder:
    """Read the map that a session means, or all that its objective names.

    Parameters
    ----------
    folder : path
        The decoder's folder.
    name : str, optional
        Which map, where there is no objective; see :meth:`Decoder.load`.
    objective : str
        See :mod:`rtevo.objective`; empty: one map.
    more : sequence of path
        More folders, whose maps the objective may name.

    Returns
    -------
    Decoder
        With `goal` and `maps` where there is an objective.

    Raises
    ------
    DecoderError
        A folder cannot be used, the objective is none or names maps that there are not, its maps have no unit to be added in, or those of
        another folder do not lie on the first one's reference.
    """
    if not objective:
        return Decoder.load(folder, name)
    folders = [Path(each) for each in (folder, *more)]
    try:
        there, aliases = _maps_there(folders)
        goal = parse_objective(objective).over(list(there), aliases)
    except ValueError as problem:
        raise DecoderError(f"objective {problem}") from None
    columns = ["se", *(f"{label}{end}" for label in goal.maps for end in ("", "_se"))]
    if len(set(columns)) < len(columns):
        raise DecoderError(f"objective {objective!r}: expected no map named 'se' or MAP_se: trials.tsv uses these names for errors")
    found = [Decoder.load(*there[label]) for label in goal.maps]
    _check_units(goal, found)
    base = Decoder.load(folders[0], next(iter(maps_in(folders[0]))))
    made = [
        replace(_on_reference(one, base, there[label][0]), name=label.replace("/", "-"))
        for one, label in zip(found, goal.maps, strict=True)
    ]
    return together(replace(base, name="objective", goal=goal), made)


def _maps_there(folders: Sequence[Path]) -> tuple[dict[str, tuple[Path, str]], dict[str, str]]:
    """Name the maps of all folders: by their own names, or FOLDER/NAME where several folders have one of a name; and give their aliases."""
    for folder in folders:
        if not folder.is_dir():
            raise DecoderError(f"{folder}: expected a decoder folder, found no such folder")
        if not maps_in(folder):
            raise DecoderError(f"{folder}: expected weight maps NAME_img.nii.gz, found none")
    labels = [folder.resolve().name for folder in folders]
    if len(set(labels)) < len(labels):
        raise DecoderError(f"decoder folders: expected different names, as maps are called FOLDER/NAME, got {', '.join(map(str, folders))}")
    every = [(label, folder, name) for label, folder in zip(labels, folders, strict=True) for name in maps_in(folder)]
    names = [name for _, _, name in every]
    called = {(label, name): name if names.count(name) == 1 else f"{label}/{name}" for label, _, name in every}
    aliases = {f"{label}/{name}": own for (label, name), own in called.items()}
    return {called[label, name]: (folder, name) for label, folder, name in every}, aliases


def _check_units(goal: Goal, maps: Sequence[Decoder]) -> None:
    """Refuse to add maps' scores that are not in units of their own noise."""
    settings = dict(zip(goal.maps, maps, strict=True))
    without = [name for name in goal.added if not isinstance(settings[name].settings.get("unit"), (int, float))]
    if without:
        ranks = " + ".join(f"rank({name})" for name in goal.added)
        raise DecoderError(
            f"objective {goal.text!r}: expected maps whose scores can be added (in units of their noise: 'unit' in decoder.json), found "
            f"none for {', '.join(without)}; maps of `python -m rtevo.decode fit` have one, `import --noise RUN` finds it, and ranks need "
            f"none, as in {ranks!r}"
        )


def _on_reference(one: Decoder, base: Decoder, folder: Path) -> Decoder:
    """Bring a map to the first folder's reference, where it was made on another."""
    same = reorder(one, base.grid)
    if same is not None and np.array_equal(same.reference, base.reference):
        return same
    found = place(one.reference, one.grid, base.reference, base.grid, weight=np.abs(one.weights))
    if found.verdict is not Verdict.GOOD:
        reasons = "; ".join(found.reasons) or f"the placement is {found.verdict}"
        raise DecoderError(f"{folder}: expected maps of the head that the first decoder folder's reference shows: {reasons}")
    return carry(one, found, base.reference, base.grid, moved=True)
