"""The course of a session: which image is requested when, which fitness evolution receives, and when the session is over.

Images are counted by generation and candidate. In the generational schedule a generation is requested as a whole, once all of the last one
is scored. In the steady one every image is requested by itself, from the scores so far, always a few ahead of the image on the screen;
generations are then blocks of `population` images, for counting. Probes, the same few images again and again, come in between: they have
no fitness, but show drift, reliability and the shift between two runs. A probe of a generation is counted as a candidate after
its last one.

A course is pure: the sessions' stage and the simulations that compare strategies drive the same one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rtevo.evolve.base import Evolver
from rtevo.evolve.controls import Feedback
from rtevo.evolve.together import Link
from rtevo.records import Projected

__all__ = ["MOST_AHEAD", "SCHEDULES", "Course", "CourseSettings", "Request", "Told"]

SCHEDULES = ("steady", "generational")
MOST_AHEAD = 8  # images requested ahead of the one on the screen
_FEWEST_BLOCKS = 2  # before the expected gain may end a run

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CourseSettings:
    """Settings of a run's course.

    Parameters
    ----------
    generations, population : int
        Candidates in the run are the product; it may end earlier.
    schedule : str
        "steady" or "generational".
    ahead : int
        Steady: images requested beyond the one on the screen.
    probe_every : int
        One image in this many is a probe; 0: none.
    stop_s : float
        Time from the first volume after which no image is requested, s; 0: no limit.
    stop_gain : float
        No image is requested once the next generation is expected to gain less, in standard deviations of random images; 0: no limit.
    """

    generations: int
    population: int
    schedule: str = "steady"
    ahead: int = 2
    probe_every: int = 0
    stop_s: float = 0.0
    stop_gain: float = 0.0

    def __post_init__(self) -> None:
        if self.generations < 1 or self.population < 1:
            raise ValueError(f"generations and population: expected at least 1, got {self.generations} and {self.population}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        if not 1 <= self.ahead <= MOST_AHEAD:
            raise ValueError(f"ahead: expected 1 to {MOST_AHEAD}, got {self.ahead}")
        if self.probe_every < 0 or self.probe_every == 1:
            raise ValueError(f"probe_every: expected 0 or at least 2, got {self.probe_every}")

    @property
    def candidates(self) -> int:
        """Candidates in the whole run."""
        return self.generations * self.population

    @property
    def images(self) -> int:
        """Images in the whole run: candidates and the probes between them."""
        return self.candidates + (self.candidates // (self.probe_every - 1) if self.probe_every else 0)


@dataclass(frozen=True)
class Request:
    """One image to be painted.

    Parameters
    ----------
    generation, candidate : int
        How it is counted.
    probe : int
        Number of the probe; -1: none.
    latent : ndarray, float32 (d,)
    """

    generation: int
    candidate: int
    probe: int
    latent: NDArray[np.float32]


@dataclass(frozen=True)
class Told:
    """The fitness that evolution has received for one candidate."""

    generation: int
    candidate: int
    fitness: float
    fitness_se: float


class Adjust(Protocol):
    """Keeps latents within what a study may show."""

    def __call__(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the nearest allowed latents, float32 (n, d), to the requested ones."""
        ...

    def refused(self, latent: NDArray[np.float32]) -> None:
        """Add a latent, float32 (d,), whose pictures were refused."""
        ...


class Course:
    """One run.

    Parameters
    ----------
    evolver : Evolver
        Fresh, or one that has had other runs before.
    settings : CourseSettings
    feedback : Feedback, optional
        Default: the fitness is the candidate's own score.
    probes : ndarray, float (p, d), optional
        Latents of the probes; needed if there are any.
    adjust : Adjust, optional
        Returns the allowed latents.
    """

    def __init__(
        self,
        evolver: Evolver,
        settings: CourseSettings,
        feedback: Feedback | None = None,
        probes: NDArray[np.floating] | None = None,
        adjust: Adjust | None = None,
    ) -> None:
        self.evolver, self.settings, self.ahead = evolver, settings, settings.ahead
        self._feedback, self._adjust = feedback or Feedback(), adjust
        self._probes = np.zeros((0, evolver.latent_size), np.float32) if probes is None else np.asarray(probes, np.float32)
        if settings.probe_every and not len(self._probes):
            raise ValueError(f"probes: expected at least one latent for probe_every = {settings.probe_every}, got none")
        self._first = evolver.begin()
        self._images = self._shown = self._candidates = self._probed = 0
        self._open: set[int] = set()
        self._open_probes: set[tuple[int, int]] = set()
        self._probes_asked: dict[tuple[int, int], tuple[int, int]] = {}  # which probe it is, and candidates requested before it
        self._refused: set[tuple[int, int]] = set()
        self._replaced = 0  # candidates requested in place of others
        self._stopped = False
        evolver.extend(settings.candidates)

    @property
    def generation(self) -> int:
        """Generation of the last requested candidate; -1 before the first."""
        return (self._candidates - 1) // self.settings.population

    @property
    def finished(self) -> bool:
        """Whether no more images will be requested."""
        return self._stopped or self._candidates >= self.settings.candidates + self._replaced

    @property
    def all_shown(self) -> bool:
        """Whether every requested image has been shown."""
        return self._shown >= self._images

    @property
    def missing(self) -> int:
        """Requested images without a score that might still get one."""
        return len(self._open) + len(self._open_probes)

    def due(self, elapsed_s: float = 0.0) -> list[Request]:
        """Return the images to be painted now.

        Parameters
        ----------
        elapsed_s : float
            Since the first volume.
        """
        wanted: list[Request] = []
        steady = self.settings.schedule == "steady"
        while (self._images - self._shown < self.ahead) if steady else (not self._open and not wanted):
            if self._over(elapsed_s):
                break
            wanted += self._ask(1 if steady else self.settings.population)
        return wanted

    def _over(self, elapsed_s: float) -> bool:
        """Whether the run is over; only this method checks for an end before the last candidate."""
        settings = self.settings
        if not self.finished and settings.stop_s and elapsed_s >= settings.stop_s:
            self._stopped = True
        blocks, begun = divmod(self._candidates, settings.population)
        if not self.finished and settings.stop_gain and not begun and blocks >= _FEWEST_BLOCKS:
            self._stopped = self.evolver.expected_gain(settings.population) < settings.stop_gain
        return self.finished

    def _ask(self, n: int) -> list[Request]:
        """Request `n` candidates, with the probes that come before them."""
        latents = self.evolver.ask(n)
        if self._adjust is not None:
            latents = np.asarray(self._adjust(latents), np.float32)
            self.evolver.place(np.arange(self.evolver.asked - n, self.evolver.asked), latents)
        wanted: list[Request] = []
        for latent in latents:
            every, number = self.settings.probe_every, self._candidates
            generation, candidate = divmod(number, self.settings.population)
            self._candidates += 1
            self._open.add(number)
            wanted.append(Request(generation, candidate, -1, latent))
            if every and self._candidates % (every - 1) == 0:
                wanted.append(self._probe(generation))
        self._images += len(wanted)
        return wanted

    def _probe(self, generation: int) -> Request:
        every, population = self.settings.probe_every - 1, self.settings.population
        before = generation * population // every  # probes of earlier generations
        which = self._probed % len(self._probes)
        candidate = population + self._probed - before
        self._probed += 1
        self._open_probes.add((generation, candidate))
        self._probes_asked[generation, candidate] = which, self._first + self._candidates
        return Request(generation, candidate, which, self._probes[which])

    def show(self) -> None:
        """Record that the next requested image is on the screen."""
        self._shown += 1

    def appeared(self, generation: int, candidate: int, onset_s: float, image_s: float) -> None:
        """Record when an image has appeared, s from the session's first volume, and for how long, for a strategy that uses volumes."""
        if not math.isfinite(onset_s):  # before the trigger
            return
        number = self._number(generation, candidate)
        own = -1 if number is None else self._first + number
        self.evolver.shown(self._first, (generation, candidate), own, onset_s, image_s)
        for shown, to in [] if number is None else self._feedback.attribute(number):
            if (key := divmod(shown, self.settings.population)) not in self._refused:
                self.evolver.belongs(self._first, key, self._first + to)

    def cut_short(self, generation: int, candidate: int, at_s: float) -> None:
        """Record that an image was taken away, s from the session's first volume, for a strategy that uses volumes."""
        self.evolver.cut_short(self._first, (generation, candidate), at_s)

    def volume(self, part: int, volume: Projected) -> None:
        """Add a volume as used by decoding, for a strategy that uses volumes; `part` is that of the session."""
        seen = self._feedback.volume(volume)
        if seen is not None:
            self.evolver.volume(self._first, part, seen)

    def look_further_ahead(self) -> bool:
        """Request one more image ahead from now on, because one was late; return whether that changes anything."""
        helps = self.settings.schedule == "steady" and not self.finished and self.ahead < MOST_AHEAD
        self.ahead += helps
        return helps

    def place(self, generation: int, candidate: int, latent: NDArray[np.floating]) -> None:
        """Set where a candidate turned out to lie: the latent of its re-encoded picture."""
        number = self._number(generation, candidate)
        if number is not None:
            self.evolver.place([self._first + number], np.asarray(latent)[np.newaxis])

    def score(self, generation: int, candidate: int, score: float, score_se: float = math.nan, link: Link | None = None) -> list[Told]:
        """Process a candidate's score, new, revised or missing (NaN); return the fitness given to evolution. A probe's only anchors runs.

        With `link`, the image's response by the volumes alone, correlated errors are respected, if the fitness is the score itself.
        """
        number = self._number(generation, candidate)
        refused = (generation, candidate) in self._refused
        if link is not None and self._feedback.plain:
            own = -1 if number is None or refused else self._first + number
            self.evolver.link(self._first, (generation, candidate), own, link)
        if number is None or refused:
            self._open_probes.discard((generation, candidate))
            self._anchor((generation, candidate), math.nan if refused else float(score), float(score_se))
            return []
        self._open.discard(number)
        return self._tell(self._feedback.take(number, float(score), float(score_se)))

    def _anchor(self, key: tuple[int, int], score: float, score_se: float) -> None:
        """Pass a probe's score on; NaN: it does not count."""
        if key in self._probes_asked and self._feedback.plain:
            which, before = self._probes_asked[key]
            self.evolver.probe(self._first, key, self._probes[which], before, score, score_se)

    def refuse(self, generation: int, candidate: int, latent: NDArray[np.float32] | None = None, *, shown: bool = False) -> list[Told]:
        """Record that an image may not be shown, or was taken away: its score does not count; return the changes of fitness.

        Parameters
        ----------
        generation, candidate : int
        latent : ndarray, float32 (d,), optional
            The latent of its pictures, to be avoided from now on.
        shown : bool
            It was on the screen. If not, the steady schedule requests another candidate in its place.
        """
        key, number = (generation, candidate), self._number(generation, candidate)
        if key in self._refused or not (key in self._open_probes or number is not None):
            return []
        self._refused.add(key)
        self._shown += not shown
        self.evolver.belongs(self._first, key, -1)
        if latent is not None and not shown and self._adjust is not None:
            self._adjust.refused(latent)
        if number is None:
            self._open_probes.discard(key)
            self._anchor(key, math.nan, math.nan)
            return [Told(generation, candidate, math.nan, math.nan)]
        self._open.discard(number)
        if not shown and self.settings.schedule == "steady" and self._replaced < self.settings.candidates:
            self._replaced += 1
            self.evolver.extend(1)
        others = [change for change in self._feedback.take(number, math.nan, math.nan) if change[0] != number]
        return self._tell([*others, (number, math.nan, math.nan)])  # whatever the feedback is: this one has none

    def give_up(self, among: Collection[tuple[int, int]] | None = None) -> list[Told]:
        """Give up waiting for missing scores.

        Parameters
        ----------
        among : collection of (int, int), optional
            Generation and candidate of these images; default: all.
        """
        population = self.settings.population
        missing = sorted(n for n in self._open if among is None or divmod(n, population) in among)
        self._open.difference_update(missing)
        self._open_probes = self._open_probes.difference(among or ()) if self._open else set()
        return [told for number in missing for told in self._tell(self._feedback.take(number, math.nan, math.nan))]

    def repeat(self, recorded: Sequence[Request]) -> list[Request]:
        """Repeat the next requests of an interrupted run; the latents are the recorded ones.

        Parameters
        ----------
        recorded : sequence of Request
            In their order; all that came of one decision to continue.

        Returns
        -------
        list of Request
            The requests of this course in their place, and those decided with them but not recorded.

        Raises
        ------
        ValueError
            This course would have requested other images.
        """
        asked: list[Request] = []
        while len(asked) < len(recorded):
            asked += self._ask(1 if self.settings.schedule == "steady" else self.settings.population)
        for mine, theirs in zip(asked, recorded, strict=False):
            if (mine.generation, mine.candidate, mine.probe) != (theirs.generation, theirs.candidate, theirs.probe):
                raise ValueError(f"recorded: expected image {mine.generation}/{mine.candidate}, got {theirs.generation}/{theirs.candidate}")
            self.place(theirs.generation, theirs.candidate, theirs.latent)
        return asked

    def stop(self) -> None:
        """Request no more images."""
        self._stopped = True

    def _number(self, generation: int, candidate: int) -> int | None:
        """Number of a candidate in the run; None for a probe, and for an image that was never requested."""
        population = self.settings.population
        number = generation * population + candidate
        return number if 0 <= candidate < population and 0 <= number < self._candidates else None

    def _tell(self, changes: list[tuple[int, float, float]]) -> list[Told]:
        numbers = [number for number, _, _ in changes]
        self.evolver.tell(
            [self._first + number for number in numbers], [fitness for _, fitness, _ in changes], [error for _, _, error in changes]
        )
        return [Told(*divmod(number, self.settings.population), fitness, error) for number, fitness, error in changes]
