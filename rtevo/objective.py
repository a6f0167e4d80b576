"""The objective that a session maximises, if it is more than one map's score: ``face - 0.5 * place``.

An objective is a sum of terms, each a number times one of

- ``NAME``: a map's score;
- ``mean(A, B, ...)``: the mean of some maps' scores; ``mean(others)``: of all maps that the objective does not name otherwise;
- ``keep(NAME)``: the squared distance of the map's score from its mean, in its units, less what the score's error adds to it; it is
  subtracted, so that the map is kept near its mean (a control region);
- ``rank(NAME)``: the rank of the map's score among all images so far, as a normal quantile (mean 0, standard deviation 1): no units.

A map's name may hold hyphens, so minus stands between blanks. ``FOLDER/NAME`` is the map of one of several folders.

This module holds the grammar and the weights of the maps; :mod:`rtevo.decode.several` applies an objective to scores.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Goal", "Objective", "Term", "parse_objective"]

OTHERS = "others"
KINDS = ("mean", "keep", "rank")
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)\s*\*\s*")
_CALL = re.compile(r"(mean|keep|rank)\s*\(([^()]*)\)")
_NAME = re.compile(r"\w[\w./-]*")
_EXAMPLES = "as 'face', 'face - 0.5 * place', 'face - mean(others)', 'face - 0.3 * keep(place)' or 'rank(face)'"


@dataclass(frozen=True)
class Term:
    """One term of an objective.

    Parameters
    ----------
    weight : float
    kind : str
        ``mean`` (of one map: its score), ``keep`` or ``rank``.
    names : tuple of str
        Maps.
    """

    weight: float
    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Goal:
    """An objective over the available maps.

    Parameters
    ----------
    text : str
        The objective as written.
    maps : tuple of str, (K,)
        The maps that it names, in its order.
    linear, keep, rank : tuple of float, (K,)
        Weight of each map's score; of its squared distance from its mean (<= 0); of its rank.
    """

    text: str
    maps: tuple[str, ...]
    linear: tuple[float, ...]
    keep: tuple[float, ...]
    rank: tuple[float, ...]

    @property
    def is_linear(self) -> bool:
        """Whether it is a weighted sum of scores, which is the score of one map."""
        return not any(self.keep) and not any(self.rank)

    @property
    def added(self) -> tuple[str, ...]:
        """Maps whose scores are added or compared in their own units; empty where there is only one."""
        found = tuple(name for name, a, b in zip(self.maps, self.linear, self.keep, strict=True) if a or b)
        ranked = any(self.rank)
        return found if len(found) > 1 or (found and ranked) else ()


@dataclass(frozen=True)
class Objective:
    """An objective as it was written.

    Parameters
    ----------
    text : str
    terms : tuple of Term
    """

    text: str
    terms: tuple[Term, ...]

    def over(self, available: Sequence[str], aliases: Mapping[str, str] | None = None) -> Goal:
        """Return the goal over the available maps.

        Parameters
        ----------
        available : sequence of str
            Names of maps.
        aliases : mapping of str to str, optional
            Other names of the maps.

        Raises
        ------
        ValueError
            A map is unknown, ``others`` is empty, or no map is left to maximise.
        """
        known, also = list(dict.fromkeys(available)), dict(aliases or {})
        terms = [(term, tuple(also.get(name, name) for name in term.names)) for term in self.terms]
        named = list(dict.fromkeys(name for _, names in terms for name in names if name != OTHERS or OTHERS in known))
        unknown = [name for name in named if name not in known]
        if unknown:
            raise ValueError(
                f"{_quoted(self.text)}: unknown map {unknown[0]!r}: expected one of {', '.join(known)}{_near(unknown[0], known)}"
            )
        rest = [name for name in known if name not in named]
        weights: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
        for term, own_names in terms:
            names = own_names if own_names != (OTHERS,) or OTHERS in known else tuple(rest)
            if not names:
                raise ValueError(f"{_quoted(self.text)}: mean(others): expected maps that are not named otherwise, found none")
            for name in names:
                own = weights[term.kind]
                own[name] = own.get(name, 0.0) + term.weight / len(names)
        maps = tuple(dict.fromkeys(name for kind in KINDS for name in weights[kind]))
        linear, keep, rank = (tuple(weights[kind].get(name, 0.0) for name in maps) for kind in KINDS)
        if not any(linear) and not any(rank):
            raise ValueError(f"{_quoted(self.text)}: expected a map to maximise, found none")
        return Goal(self.text, maps, linear, keep, rank)


def parse_objective(text: str) -> Objective:
    """Read an objective.

    Raises
    ------
    ValueError
        The text is not an objective; the message says what was expected, and where.
    """
    terms: list[Term] = []
    place = 0
    while place < len(text.rstrip()):
        rest = text[place:]
        sign = re.match(r"\s*([+-]?)\s*", rest)
        assert sign is not None
        if terms and not sign[1]:
            raise ValueError(_expected(text, place, "'+' or '-'"))
        place += sign.end()
        number = _NUMBER.match(text, place)
        weight = float(number[1]) if number else 1.0
        place = number.end() if number else place
        term, place = _term(text, place, -weight if sign[1] == "-" else weight)
        terms.append(term)
    if not terms:
        raise ValueError(f"expected an objective, {_EXAMPLES}, got {_quoted(text)}")
    return Objective(text, tuple(terms))


def _term(text: str, place: int, weight: float) -> tuple[Term, int]:
    """Read the term after sign and number; return it and its end."""
    if not math.isfinite(weight):
        raise ValueError(_expected(text, place, "a finite number"))
    if call := _CALL.match(text, place):
        kind, names = call[1], tuple(name.strip() for name in call[2].split(","))
        if not all(_NAME.fullmatch(name) for name in names) or (kind != "mean" and len(names) > 1):
            raise ValueError(_expected(text, call.start(2), "names of maps, with commas between" if kind == "mean" else "one map's name"))
        if len(set(names)) < len(names) or (OTHERS in names and len(names) > 1):
            raise ValueError(_expected(text, call.start(2), "each map once, or others alone"))
        if kind != "mean" and names == (OTHERS,):
            raise ValueError(_expected(text, call.start(2), "one map's name"))
        if kind == "keep" and weight > 0:
            raise ValueError(
                f"{_quoted(text)}: expected keep({names[0]}) to be subtracted: a map is kept near its mean by a minus before it"
            )
        return Term(weight, kind, names), call.end()
    if name := _NAME.match(text, place):
        return Term(weight, "mean", (name[0],)), name.end()
    raise ValueError(_expected(text, place, "a map's name, mean(...), keep(...) or rank(...)"))


def _expected(text: str, place: int, what: str) -> str:
    found = text[place:].strip()
    return f"{_quoted(text)}: expected {what}, found {_quoted(found) if found else 'its end'}; write it {_EXAMPLES}, minus between blanks"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _near(name: str, known: Sequence[str]) -> str:
    """Return a suggestion for a misspelt objective."""
    parts = name.split("-")
    if len(parts) > 1 and all(part in known for part in parts):
        return f"; did you mean '{' - '.join(parts)}'?"
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
