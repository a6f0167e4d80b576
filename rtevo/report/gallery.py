"""The participant's preference at the end of a run: several distinct images with intervals, and its direction.

Both follow from the posterior of all scores (:mod:`rtevo.evolve.preference`). The gallery is chosen greedily: the best image, then the
best of those that are 60 degrees or more from each chosen one, as long as one is better than a random image with a probability of 95%.
Whether an image has an optimum of its own is whether the response is lower somewhere on the way to a better one. What drives it is the
direction in which responses rise, said by the pictures of the latent space that lie along it and against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtevo.errors import RtevoError
from rtevo.evolve import Evolver, Preference, from_state, preference_of
from rtevo.evolve.model import one_thread
from rtevo.latent import Examples, LatentSpace, examples_of
from rtevo.record import EVOLUTION, RecordedSession, evolution_of

__all__ = [
    "KNOWN",
    "Chosen",
    "Named",
    "Preferred",
    "choose",
    "driven_by",
    "gallery_of",
    "own_optima",
    "preferred",
    "preferred_of",
    "verdict",
    "what_it_means",
    "words",
]

Array = NDArray[np.float64]
Key = tuple[int, int]
KNOWN = math.log(20.0)  # log evidence of a preference over none from which on it is called known
LIMIT = math.cos(math.radians(60.0))  # images with a larger cosine are of one kind
MOST, NAMED, NEAR = 6, 6, 3  # images of the gallery; pictures that are named along and against the direction, and for an image
SURE = 0.95
DRAWS = 2000
INTERVAL = (5.0, 95.0)  # percent
_STEPS = (0.25, 0.5, 0.75)  # of the way between two images
_SEED = 17  # so that the same run has the same page


@dataclass(frozen=True)
class Named:
    """A picture of the latent space, and how it lies to a direction.

    Parameters
    ----------
    name : str
    cosine, low, high : float
        Mean and 90% interval over the posterior; of an image, which is known, all three are the same.
    thumbnail : bytes
        A JPEG file; empty where only the name is known.
    """

    name: str
    cosine: float
    low: float
    high: float
    thumbnail: bytes


@dataclass(frozen=True)
class Chosen:
    """An image of the gallery.

    Parameters
    ----------
    key : tuple of int
        Generation and candidate.
    response, low, high : float
        Posterior mean and 90% interval, above a random image, in the unit of the scores.
    alike : int
        Scored images that are nearer to it than to any other of the gallery, and within 60 degrees; itself included.
    better : float
        Probability that its response is larger than that of the next; NaN for the last.
    own : float
        Probability that the response is lower somewhere on the way to each better image of the gallery; NaN for the first, and where the
        scores do not call for more than one direction.
    near : tuple of Named
        The pictures of the latent space that are nearest to it.
    """

    key: Key
    response: float
    low: float
    high: float
    alike: int
    better: float
    own: float
    near: tuple[Named, ...]


@dataclass(frozen=True)
class Preferred:
    """The preference as far as it is known.

    Parameters
    ----------
    problem : str
        Why nothing can be said; empty where something can, and all else counts.
    advantage : float
        Log evidence of a preference over none.
    cosine : tuple of float, (3,)
        Expected cosine of the direction with the true one, and its 90% interval.
    scored, runs, size : int
        Images and runs that it is known from; dimensions of the latent space.
    curved : bool
        Whether the scores call for more than one direction.
    along, against : tuple of Named
        Empty where the latent space keeps no pictures.
    gallery : tuple of Chosen
    """

    problem: str = ""
    advantage: float = 0.0
    cosine: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scored: int = 0
    runs: int = 1
    size: int = 0
    curved: bool = False
    along: tuple[Named, ...] = ()
    against: tuple[Named, ...] = ()
    gallery: tuple[Chosen, ...] = ()

    @property
    def known(self) -> bool:
        """Whether there is a preference, as far as the scores say."""
        return not self.problem and self.advantage >= KNOWN


def choose(responses: Array, latents: Array, most: int = MOST) -> list[int]:
    """Choose distinct preferred images.

    Parameters
    ----------
    responses : ndarray, float64 (draws, n)
        Of each image, above a random one.
    latents : ndarray, float64 (n, d)
    most : int

    Returns
    -------
    list of int
        The best first: at least 60 degrees apart, and each better than a random image with a probability of 95%.
    """
    cosines, chosen = _cosines(latents, latents), list[int]()
    good = (responses > 0).mean(axis=0) >= SURE
    for k in np.argsort(-responses.mean(axis=0), kind="stable"):
        if good[k] and len(chosen) < most and all(cosines[k, other] <= LIMIT for other in chosen):
            chosen.append(int(k))
    return chosen


def own_optima(preference: Preference, latents: Array, rng: np.random.Generator) -> Array:
    """Probability (n,) that each of some images (n, d), the best first, has an optimum of its own; NaN for the first, and if flat.

    For each better image it is looked whether the response is lower than both ends somewhere on the way, along the great circle; the least
    of these probabilities counts.
    """
    found = np.full(len(latents), np.nan)
    if preference.curved is None:
        return found
    for k in range(1, len(latents)):
        own = []
        for other in latents[:k]:
            ends = np.stack([other, latents[k]])
            draws = preference.responses(np.vstack([ends, _between(*ends)]), DRAWS, rng)
            own.append(float((draws[:, 2:].min(axis=1) < draws[:, :2].min(axis=1)).mean()))
        found[k] = min(own)
    return found


def driven_by(directions: Array, examples: Examples | None, scale: Array) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    """Describe a direction by the pictures that lie along it, and against it.

    Parameters
    ----------
    directions : ndarray, float64 (draws, d)
        In latent units.
    examples : Examples or None
    scale : ndarray, float64 (d,)
        Embedding units of a latent unit.

    Returns
    -------
    along, against : tuple of Named
        The nearest first, the farthest first.
    """
    if examples is None:
        return (), ()
    cosines = _cosines(directions, examples.points / scale)
    order = np.argsort(-cosines.mean(axis=0), kind="stable")
    few = min(NAMED, len(order) // 2)
    named = [_named(examples, int(k), cosines[:, k]) for k in (*order[:few], *order[::-1][:few])]
    return tuple(named[:few]), tuple(named[few:])


def gallery_of(preference: Preference, keys: Mapping[int, Key], space: LatentSpace, rng: np.random.Generator) -> tuple[Chosen, ...]:
    """Choose the gallery among scored images.

    Parameters
    ----------
    preference : Preference
    keys : mapping of int to tuple, (n,)
        Generation and candidate of those that may be chosen, by their places among the model's images.
    space : LatentSpace
    rng : numpy.random.Generator
    """
    places = np.array(list(keys), np.int64)
    latents, draws = preference.measured.latents[places], preference.images(DRAWS, rng)[:, places]
    chosen = choose(draws, latents)
    if not chosen:
        return ()
    points, draws = latents[chosen], draws[:, chosen]
    own = own_optima(preference, points, rng)
    nearest, cosines = _cosines(latents, points).argmax(axis=1), _cosines(latents, points).max(axis=1)
    examples, found = examples_of(space), []
    for k, which in enumerate(chosen):
        low, high = np.percentile(draws[:, k], INTERVAL)
        better = float((draws[:, k] > draws[:, k + 1]).mean()) if k + 1 < len(chosen) else math.nan
        alike = int(((nearest == k) & (cosines > LIMIT)).sum())
        near, _ = driven_by(points[k : k + 1], examples, space.scale.astype(np.float64))
        found.append(
            Chosen(keys[int(places[which])], float(draws[:, k].mean()), float(low), float(high), alike, better, float(own[k]), near[:NEAR])
        )
    return tuple(found)


def preferred(session: RecordedSession, population: int) -> Preferred:
    """Return a run's preference, as the evolution knew it at its end.

    Parameters
    ----------
    session : RecordedSession
    population : int
        Images in a generation.
    """
    if not (session.out / EVOLUTION).exists():
        return Preferred(f"this run has no {EVOLUTION}")
    try:
        evolver = from_state(evolution_of(session.out)["evolver"])
        space = LatentSpace.load(session.out / "latent_space.npz")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RtevoError) as problem:
        return Preferred(f"the evolution's final state cannot be read ({problem})")
    return preferred_of(evolver, space, population)


def preferred_of(evolver: Evolver, space: LatentSpace, population: int) -> Preferred:
    """The same of an evolver and the space that it searched."""
    known, rng = evolver.history(), np.random.default_rng(_SEED)
    if space.latent_size != evolver.latent_size:
        return Preferred(f"evolution was in {evolver.latent_size} dimensions, the latent space has {space.latent_size}")
    with one_thread():
        preference = preference_of(evolver)
        if preference is None:
            return Preferred(f"{len(known.ids)} images were scored, or all scores are equal: too few for a model")
        directions = preference.directions(DRAWS, rng)
        cosines = _cosines(directions, preference.direction[np.newaxis])[:, 0]
        low, high = map(float, np.percentile(cosines, INTERVAL))
        along, against = driven_by(directions, examples_of(space), space.scale.astype(np.float64))
        numbers = known.ids - evolver.first
        keys = {place: divmod(int(number), population) for place, number in enumerate(numbers) if number >= 0}
        found = Preferred(
            "", preference.advantage, (float(cosines.mean()), low, high), len(known.ids), evolver.runs,
            evolver.latent_size, preference.curved is not None, along, against,
            gallery_of(preference, keys, space, rng),
        )  # fmt: skip
    return found


# --- in words --------------------------------------------------------------------------------------------------------------------------


def odds(advantage: float) -> str:
    """Return a log evidence as odds."""
    if abs(advantage) > math.log(1e6):
        return "more than a million to 1" if advantage > 0 else "1 to more than a million"
    ratio = math.exp(abs(advantage))
    number = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"
    return f"{number} to 1" if advantage >= 0 else f"1 to {number}"


def verdict(found: Preferred) -> str:
    """Report in a sentence or two whether there is a preference, and how certain its direction is."""
    if found.problem:
        return f"Not known: {found.problem}."
    of = f"{found.scored} scored images" + (f" of {found.runs} runs" if found.runs > 1 else "") + f" in {found.size} dimensions"
    if not found.known:
        return (
            f"Not known: the odds for a preference against none are {odds(found.advantage)}, and 20 to 1 is required ({of}). "
            "So the report shows neither preferred images nor a direction."
        )
    mean, low, high = found.cosine
    return (
        f"Known: the odds for a preference against none are {odds(found.advantage)} ({of}). The cosine of the direction found "
        f"with the true one is expected to be {mean:.2f} (90% interval {low:.2f} to {high:.2f})."
    )


def what_it_means(condition: str) -> str:
    """Return what the answer means if evolution was not given the brain's own scores, or did not select; empty if it was."""
    return {
        "sham": "Sham: evolution received scores permuted over the run, and this answer is made from them. It came about by chance.",
        "yoked": "Yoked: evolution received another participant's scores, and this answer is made from those.",
        "random": "Random: nothing was selected. This answer is made from the brain's own scores of random images.",
    }.get(condition, "")


def words(chosen: Chosen) -> list[str]:
    """Return the figures of an image of the gallery except its response, one a line."""
    lines = [f"{chosen.alike} image{'s' if chosen.alike != 1 else ''} of its kind"]
    if not math.isnan(chosen.better):
        lines.append(
            f"better than the next ({chosen.better:.0%})" if chosen.better >= SURE else f"not separated from the next ({chosen.better:.0%})"
        )
    if not math.isnan(chosen.own):
        own = f"own optimum: not known ({chosen.own:.0%})"
        if chosen.own >= SURE or chosen.own <= 1 - SURE:
            own = "an optimum of its own" if chosen.own >= SURE else "on the slope of a better one"
        lines.append(own)
    return lines + ([f"near {', '.join(each.name for each in chosen.near)}"] if chosen.near else [])


def _named(examples: Examples, k: int, cosines: Array) -> Named:
    low, high = np.percentile(cosines, INTERVAL)
    return Named(examples.names[k], float(cosines.mean()), float(low), float(high), examples.thumbnails[k] if examples.thumbnails else b"")


def _between(first: Array, second: Array) -> Array:
    """Points on the great circle between two, whose lengths go over into each other."""
    a, b = first / np.linalg.norm(first), second / np.linalg.norm(second)
    angle = math.acos(float(np.clip(a @ b, -1.0, 1.0)))
    lengths = [np.linalg.norm(first) ** (1 - s) * np.linalg.norm(second) ** s for s in _STEPS]
    ways = [math.sin((1 - s) * angle) * a + math.sin(s * angle) * b for s in _STEPS]
    return np.stack([length * way / np.linalg.norm(way) for length, way in zip(lengths, ways, strict=True)])


def _cosines(rows: Array, others: Array) -> Array:
    """Cosine of each row with each other one."""
    lengths = np.linalg.norm(rows, axis=1)[:, np.newaxis] * np.linalg.norm(others, axis=1)
    return np.asarray(rows @ others.T / np.maximum(lengths, 1e-300), np.float64)
