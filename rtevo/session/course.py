"""From a session file to the course of its evolution, and its checks before the start."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo import evolve
from rtevo.config import Config
from rtevo.errors import ConfigError, DataError
from rtevo.latent import Avoid, LatentSpace
from rtevo.outside import read_regular
from rtevo.record import RecordedSession, SeriesRecord, evolution_of, is_sealed, open_sealed, projected_of
from rtevo.records import Projected
from rtevo.session.blinding import CONDITIONS, condition_of, load_secret, read_key, scramble
from rtevo.session.rings import looks_at_volumes
from rtevo.session.safety import Adjustment

__all__ = [
    "CONDITIONS",
    "check",
    "check_partner",
    "course_settings",
    "fitness_of",
    "make_course",
    "resolve_condition",
    "scramble",
    "state_of",
]

AHEAD = {"none": 1, "veto": 3, "each": 3}  # images requested ahead, at least: approval takes time
_SAME_TR_S = 1e-3
MOST_FEEDBACK = 1 << 24  # bytes of a sealed file
_PROBE_SEED = 20_000_523  # probes are the same in every session
_SHAM, _PROBES, _AVOID, _SHOWN = 1, 2, 3, 4  # streams of random numbers beside evolution's own


def course_settings(config: Config) -> evolve.CourseSettings:
    """Return the settings of a session's course."""
    e = config.evolution
    ahead = max(e.prefetch, AHEAD[config.safety.approval])
    return evolve.CourseSettings(
        e.generations, e.population, e.schedule, ahead, e.probe_every, stop_s=60 * e.stop_minutes, stop_gain=e.stop_gain
    )


def make_course(config: Config, condition: str, space: LatentSpace, avoid: Avoid | None = None) -> evolve.Course:
    """Return the course of a session.

    Parameters
    ----------
    config : Config
    condition : str
        Resolved: not "blinded".
    space : LatentSpace
    avoid : Avoid, optional
        What it stays away from; with what is refused it may grow.

    Raises
    ------
    ConfigError
        A file that the session names cannot be used.
    """
    e, seed = config.evolution, config.session.seed
    settings = course_settings(config)
    feedback = evolve.Feedback()
    if condition == "sham":
        shown = np.random.default_rng([seed, _SHOWN]) if e.strategy == "direct" else None
        feedback = evolve.Sham(np.random.default_rng([seed, _SHAM]), shown)
    elif condition == "yoked":
        volumes = _recorded_volumes(e.yoked_to)[0] if e.strategy == "direct" else {}
        feedback = evolve.Yoked(_recorded(e.yoked_to, e.blinding_secret), volumes)
    probes = np.random.default_rng([_PROBE_SEED, _PROBES]).standard_normal((e.probes, space.latent_size))
    course = evolve.Course(
        _evolver(config, condition, space),
        settings,
        feedback,
        probes.astype(np.float32) if e.probe_every else None,
        _adjustment(config, space, avoid),
    )
    if e.stop_minutes:
        course.evolver.extend(max(1, min(settings.candidates, _candidates_within(config))))
    return course


def _candidates_within(config: Config) -> int:
    """Return the approximate number of candidates in the run's minutes."""
    p, e = config.presentation, config.evolution
    seconds = p.image_s + p.washout_s + (p.rating_window_s / 2 if config.session.condition == "ratings" else 0.0)
    images = (60 * e.stop_minutes - p.baseline_s) / seconds
    return int(images * (1 - 1 / e.probe_every if e.probe_every else 1))


def _evolver(config: Config, condition: str, space: LatentSpace) -> evolve.Evolver:
    """Make the strategy, or continue an earlier run's."""
    e = config.evolution
    rng = np.random.default_rng(config.session.seed)
    limits = (e.norm_limits[0], e.norm_limits[1]) if e.norm_limits else None
    strategy = "random" if condition == "random" else e.strategy
    if not e.continue_from:
        evolver = evolve.create(strategy, space.latent_size, e.population, rng, budget=None, mutation_sd=e.mutation_sd, norm_limits=limits)
        return _as_said(evolver, e.preference_half_life, space)
    where = f"[evolution] continue_from: {e.continue_from}"
    try:
        state = evolution_of(Path(e.continue_from))
        evolver = evolve.from_state(state["evolver"])
    except (OSError, DataError, ValueError, KeyError, TypeError) as problem:
        raise ConfigError(f"{where}: expected the evolution.json of an earlier run, found something else: {problem}") from None
    if evolver.strategy != strategy:
        raise ConfigError(f"{where}: expected strategy {strategy!r} as in this session, found {evolver.strategy!r}")
    if state.get("latent_space") != _fingerprint(space):
        raise ConfigError(f"{where}: that run had another latent space; its latents have no meaning in this one")
    return _as_said(evolver, e.preference_half_life, space)


def _as_said(evolver: evolve.Evolver, half_life: float, space: LatentSpace) -> evolve.Evolver:
    """Set the ageing of scores and the shell of embeddings as in this session, whatever the runs before it did."""
    if isinstance(evolver, evolve.Surrogate):
        evolver.half_life = half_life
        evolver.shell = evolve.Shell.of(space.mean, space.components, space.scale)
    return evolver


def _adjustment(config: Config, space: LatentSpace, avoid: Avoid | None) -> Adjustment | None:
    """Return what keeps latents within the session's limits; None if it has none."""
    if avoid is None and not (config.evolution.norm_limits or config.safety.keep_away > 0):
        return None
    rng = np.random.default_rng([config.session.seed, _AVOID])
    return Adjustment(space, config.evolution.norm_limits, avoid, rng, config.safety.keep_away)


def _recorded(name: str, secret: str) -> NDArray[np.float64]:
    """Read the fitness of a recorded session's candidates, in the order of their requests: from its folder, or sealed."""
    path = Path(name)
    try:
        if path.is_file() and is_sealed(data := read_regular(path, MOST_FEEDBACK)):
            return np.frombuffer(open_sealed(data, load_secret(Path(secret))), "<f8")
        return fitness_of(RecordedSession(path if path.is_dir() else path.parent))
    except (OSError, ValueError, DataError) as problem:
        raise ConfigError(f"[evolution] yoked_to: expected the folder of a session, got {name!r}: {problem}") from None


def check_partner(config: Config, tr_s: float) -> None:
    """Check the session to which this one may be yoked, if evolution uses volumes, for any condition.

    Raises
    ------
    ConfigError
        It holds no series, or one of another repetition time.
    """
    name = config.evolution.yoked_to
    if not name or not looks_at_volumes(config):
        return
    found_s = _recorded_volumes(name)[1]
    if abs(found_s - tr_s) > _SAME_TR_S:
        raise ConfigError(
            f"[evolution] yoked_to: {name}: strategy 'direct' expects a session with this one's TR, {tr_s:g} s, found {found_s:g} s"
        )


def _recorded_volumes(name: str) -> tuple[dict[int, Projected], float]:
    """Read the volumes of a recorded session by their number, for a strategy that uses volumes, and its repetition time, s.

    Raises
    ------
    ConfigError
        It has none.
    """
    path = Path(name)
    where = f"[evolution] yoked_to: {name}: strategy 'direct' expects the folder of a session of that strategy"
    if path.is_file() and is_sealed(read_regular(path, MOST_FEEDBACK)):
        raise ConfigError(f"{where}, found a sealed file of scores: use strategy 'surrogate' in studies with a yoked arm")
    try:
        session = RecordedSession(path if path.is_dir() else path.parent)
    except (OSError, ValueError, DataError) as problem:
        raise ConfigError(f"{where}: {problem}") from None
    volumes = {record.index: projected_of(record) for record in session.records(SeriesRecord)}
    if not volumes:
        raise ConfigError(f"{where}, with the series in its log; found none")
    return volumes, session.start.tr_s


def fitness_of(session: RecordedSession) -> NDArray[np.float64]:
    """Return the last fitness of each candidate: float64 (candidates,), in the order of their requests."""
    rows = [row for row in session.rows if row.get("probe") is None]
    rows.sort(key=lambda row: (row["generation"], row["candidate"]))
    return np.array([row.get("fitness", math.nan) for row in rows], np.float64)


def _fingerprint(space: LatentSpace) -> str:
    """SHA-256 of a latent space's numbers."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in (space.mean, space.components, space.scale))).hexdigest()


def state_of(course: evolve.Course, space: LatentSpace) -> dict[str, Any]:
    """Return what another run needs to continue from here, as plain JSON types."""
    return {"schema": 1, "latent_space": _fingerprint(space), "evolver": course.evolver.to_state()}


def resolve_condition(config: Config) -> str:
    """Return the condition that drives evolution; a blinded session looks it up by participant and session in its key.

    Raises
    ------
    ConfigError
        The key cannot be read or does not list this participant and session.
    """
    if config.session.condition != "blinded":
        return config.session.condition
    name, who = config.evolution.blinding_key, (config.session.participant, config.session.session)
    codes = read_key(Path(name))
    if who not in codes:
        raise ConfigError(f"[evolution] blinding_key: {name}: expected a line for participant {who[0]!r}, session {who[1]!r}, found none")
    secret = load_secret(Path(config.evolution.blinding_secret)) if config.evolution.blinding_secret else b""
    try:
        return condition_of(codes[who], *who, secret)
    except ValueError as problem:
        raise ConfigError(f"[evolution] blinding_key: {name}: the code of participant {who[0]!r}, session {who[1]!r} {problem}") from None


def check(config: Config, space: LatentSpace, avoid: Avoid | None = None) -> str:
    """Check a session's evolution before the start, and return its condition.

    Parameters
    ----------
    config : Config
    space : LatentSpace
    avoid : Avoid, optional
        What it stays away from.

    Raises
    ------
    ConfigError, DataError
        With what is wrong.
    """
    condition = resolve_condition(config)
    if condition == "yoked" and not config.evolution.yoked_to:
        raise ConfigError("[evolution] yoked_to: expected a file, as this session may be yoked, got none")
    try:
        make_course(config, condition, space, avoid)
    except ValueError as problem:
        raise ConfigError(f"[evolution] {problem}") from None
    except ImportError:
        strategy = config.evolution.strategy
        raise ConfigError(f"[evolution] strategy: {strategy!r} needs the package cmaes (pip install 'rtevo[cma]')") from None
    return condition
