"""Simulated participants for ``bench_unseen.py``: what evolution meets that it was not made for.

A participant looks at embeddings, as deviations ``x`` from the mean in units in which a random image's coordinates have a variance of 1 on
average. In a *flat* space all coordinates vary alike; in a *falling* one their variances are as 1, 1/2, 1/3, ... Preferred pictures are
random pictures of the space. Every objective is of one group: the surrogate may be tuned on ``tune``, ``report`` is what is reported, and
``check`` is looked at once, in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

Array = np.ndarray

SPACES = ("flat", "falling")
_SAMPLE = 4000
_SHELL, _EDGE = 1.35, 0.07  # re-encoded: lengths, as shares of the usual one, from which on pictures fall apart
_RECENT, _TIRED = 5, 0.5  # habituation: images that count, and how much of the response is lost where all were the same
_TURN = math.radians(60)  # drifting: over the run


def spectrum(space: str, size: int) -> Array:
    """Standard deviations of a random image's coordinates (size,), mean square 1."""
    variances = np.ones(size) if space == "flat" else 1.0 / np.arange(1, size + 1)
    return np.asarray(np.sqrt(variances / variances.mean()))


@dataclass
class Participant:
    """What one participant answers, in standard deviations of the response to random images.

    Parameters
    ----------
    truth : callable
        Preference for embeddings (n, size), shown in this order: what gains are counted in.
    starts : ndarray, float (k, size)
        Pictures near which the best one may be.
    seen : callable, optional
        What the scores measure where that is something else.
    last : callable, optional
        The preference at the end of the run, where it changes: what the ceiling is found of.
    """

    truth: Callable[[Array], Array]
    starts: Array
    seen: Callable[[Array], Array] | None = None
    last: Callable[[Array], Array] | None = None


def unit(points: Array) -> Array:
    """Scale rows to length 1."""
    return np.asarray(points / np.linalg.norm(points, axis=-1, keepdims=True))


class World:
    """Random pictures of a space, and how far pictures go along a direction."""

    def __init__(self, space: str, size: int, rng: np.random.Generator) -> None:
        self.sd, self.rng, self.size = spectrum(space, size), rng, size
        self.random = self.pictures(_SAMPLE)

    def pictures(self, n: int) -> Array:
        """Draw random pictures (n, size)."""
        return np.asarray(self.sd * self.rng.standard_normal((n, self.size)))

    def along(self, target: Array) -> Callable[[Array], Array]:
        """Return similarity of direction to a picture, in standard deviations of random images."""
        spread = float((unit(self.random) @ unit(target)).std())
        return lambda x: np.asarray(unit(x) @ unit(target) / spread)

    def scaled(self, raw: Callable[[Array], Array], starts: Array) -> Participant:
        """Return a participant whose response to random images has mean 0 and standard deviation 1."""
        values = raw(self.random)
        mean, sd = float(values.mean()), float(values.std())
        return Participant(lambda x: np.asarray((raw(x) - mean) / sd), starts)


def expansive(world: World, images: int) -> Participant:
    """A response that grows with the square of the similarity."""
    target = world.pictures(1)
    like = world.along(target[0])
    return world.scaled(lambda x: np.maximum(like(x) + 1, 0) ** 2, target)


def conjunction(world: World, images: int) -> Participant:
    """Two features that both have to be there."""
    targets = world.pictures(2)
    first, second = map(world.along, targets)
    return world.scaled(lambda x: np.sqrt(np.maximum(first(x), 0) * np.maximum(second(x), 0)), np.vstack([targets, targets.sum(axis=0)]))


def clusters(world: World, images: int) -> Participant:
    """The nearest of twelve exemplars, in three clusters of worth 1, 0.8 and 0.6."""
    centres = world.pictures(3)
    exemplars = np.concatenate([0.8 * centre + 0.6 * world.pictures(4) for centre in centres])
    worth = np.repeat([1.0, 0.8, 0.6], 4)
    return world.scaled(lambda x: (np.exp((unit(x) @ unit(exemplars).T - 1) / 0.4) * worth).max(axis=1), exemplars)


def habituation(world: World, images: int) -> Participant:
    """A similarity whose response is weaker the more the last five images were like this one."""
    target = world.pictures(1)
    participant = world.scaled(world.along(target[0]), target)
    recent: list[Array] = []

    def seen(x: Array) -> Array:
        values = []
        for point, value in zip(unit(x), participant.truth(x), strict=True):
            tired = float(np.mean([max(float(point @ other), 0.0) for other in recent])) if recent else 0.0
            values.append(value * (1 - _TIRED * tired) - tired)
            recent.append(point)
            del recent[:-_RECENT]
        return np.array(values)

    participant.seen = seen
    return participant


def sigmoid(world: World, images: int) -> Participant:
    """A response that begins late and levels off, along one direction."""
    target = world.pictures(1)
    projected = target[0] / np.linalg.norm(target[0] * world.sd)
    return world.scaled(lambda x: 1 / (1 + np.exp(-1.5 * (x @ projected - 2))), target)


def normalised(world: World, images: int) -> Participant:
    """Divisive normalisation: one direction's drive over that of a pool of others."""
    targets = world.pictures(9)
    drives = [world.along(target) for target in targets]

    def raw(x: Array) -> Array:
        drive = np.stack([np.maximum(one(x), 0) ** 2 for one in drives])
        return np.asarray(drive[0] / (1 + drive.sum(axis=0)))

    return world.scaled(raw, targets[:1])


def category(world: World, images: int) -> Participant:
    """A category: nothing below a similarity that one in twenty random images has, all of it well above."""
    target = world.pictures(1)
    like = world.along(target[0])
    return world.scaled(lambda x: np.tanh(3 * (like(x) - 1.645)), target)


def drifting(world: World, images: int) -> Participant:
    """A similarity to a picture that changes, by 60 degrees over the run."""
    first, second = unit(world.pictures(2))
    second = unit(second - (second @ first) * first)
    at = 0

    def target(share: float) -> Array:
        return np.asarray(math.cos(_TURN * share) * first + math.sin(_TURN * share) * second)

    def truth(x: Array) -> Array:
        nonlocal at
        values = []
        for point in x:
            values.append(world.along(target(min(at / images, 1.0)))(point[np.newaxis])[0])
            at += 1
        return np.array(values)

    return Participant(truth, target(1.0)[np.newaxis], last=world.along(target(1.0)))


def reencoded(world: World, images: int) -> Participant:
    """Similarity of what a picture re-encodes to: bent coordinates, and further out than pictures are ever less of what was asked for."""
    basis = np.linalg.qr(world.rng.standard_normal((world.size, world.size)))[0]
    spread = (world.random @ basis).std(axis=0)
    mess, usual = world.pictures(1), math.sqrt(world.size)

    def encode(x: Array) -> Array:
        painted = (2 * spread * np.tanh(x @ basis / (2 * spread))) @ basis.T
        lost = 1 / (1 + np.exp(-(np.linalg.norm(x, axis=1, keepdims=True) / usual - _SHELL) / _EDGE))
        return np.asarray((1 - lost) * painted + lost * mess)

    target = world.pictures(1)
    like = world.along(encode(target)[0])
    return world.scaled(lambda x: like(encode(x)), target)


def energy(world: World, images: int) -> Participant:
    """An energy model: the sum of the squares of three features, whose signs do not matter."""
    targets = world.pictures(3)
    likes = [world.along(target) for target in targets]
    return world.scaled(lambda x: np.sqrt(sum(like(x) ** 2 for like in likes)), np.vstack([targets, targets.sum(axis=0)]))


def rivals(world: World, images: int) -> Participant:
    """Similarity to one picture, less that to the nearest of three that have half of it in common."""
    target = world.pictures(1)
    others = math.sqrt(0.5) * (target + world.pictures(3))
    like, unlike = world.along(target[0]), [world.along(other) for other in others]
    return world.scaled(lambda x: like(x) - 0.7 * np.max([other(x) for other in unlike], axis=0), np.vstack([target, 2 * target - others]))


def bell(world: World, images: int) -> Participant:
    """Two directions, each best at a middle strength."""
    targets = world.pictures(2)
    projected = targets / np.linalg.norm(targets * world.sd, axis=1, keepdims=True)
    starts = np.vstack([targets, targets.sum(axis=0)])
    return world.scaled(lambda x: np.exp(-0.5 * ((x @ projected.T - 2.5) ** 2).sum(axis=1) / 1.5**2), starts)


GROUPS: dict[str, tuple[Callable[[World, int], Participant], ...]] = {
    "tune": (expansive, conjunction, clusters, habituation),
    "report": (sigmoid, normalised, category, drifting, reencoded),
    "check": (energy, rivals, bell),
}
OBJECTIVES = {make.__name__: make for group in GROUPS.values() for make in group}


def participant(objective: str, space: str, size: int, seed: int, images: int) -> Participant:
    """Make a participant for a run of so many images; functions are of latents (n, size)."""
    world = World(space, size, np.random.default_rng([seed, SPACES.index(space)]))
    made = OBJECTIVES[objective](world, images)

    def of_latents(function: Callable[[Array], Array], x: Array) -> Array:
        return function(x * world.sd)

    whole = [None if each is None else partial(of_latents, each) for each in (made.truth, made.seen, made.last)]
    return Participant(whole[0] or made.truth, made.starts / world.sd, whole[1], whole[2])


def ceiling(objective: str, space: str, size: int, seed: int, images: int, within: Callable[[Array], Array], steps: int = 80) -> float:
    """Highest preference on the shell: steepest ascent, without noise, from the preferred pictures and random ones."""
    made = participant(objective, space, size, seed, images)
    value = made.last or made.truth
    starts = np.vstack([made.starts, np.random.default_rng([seed, 4]).standard_normal((3, size))])
    best = -math.inf
    for start in within(starts / np.linalg.norm(starts, axis=1, keepdims=True) * math.sqrt(size)):
        point, here, step = start, float(value(start[np.newaxis])[0]), math.sqrt(size) / 4
        for _ in range(steps):
            gradient = value(point + 1e-4 * np.eye(size)) - here
            moved = within((point + step * gradient / max(float(np.linalg.norm(gradient)), 1e-300))[np.newaxis])
            there = float(value(moved)[0])
            point, here, step = (moved[0], there, step) if there > here else (point, here, step / 2)
        best = max(best, here)
    return best
