"""Recomputation of a recorded session: ``python -m rtevo.run --rerun OUT``.

Motion, scores, fitness and evolution's requests are computed from the raw volumes and the recorded events, in one process and without a
clock. With the session's own settings, and the version of rtevo that recorded it, all results are the same to the last bit. With other
settings (another decoder, response, strategy) the results are compared with the recorded ones: the images shown stay the same; their
scores, and evolution's selection and requests, differ.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtevo.command import say
from rtevo.config import Config
from rtevo.errors import ConfigError, DataError
from rtevo.evolve.together import Link
from rtevo.past.comparison import compare
from rtevo.past.evolution import Past, Scored, Volume, go_through, measured
from rtevo.past.resume import gone
from rtevo.record import (
    LOG,
    AlignedRecord,
    FitnessRecord,
    ImageRecord,
    LogWriter,
    Record,
    RecordedSession,
    ScoreRecord,
    SeriesRecord,
    VolumeRecord,
    volume_path,
)
from rtevo.records import VolumeFlag
from rtevo.session.plan import MEASURED

if TYPE_CHECKING:
    from rtevo.decode import Score
    from rtevo.session.decoding import Aligned

__all__ = ["rerun"]

_AS_RECORDED = {"evolution": ("schedule", "population", "generations", "probe_every", "latent_size", "pca"), "acquisition": ("tr_s",)}
Key = tuple[int, int]


def rerun(out: Path, recorded: Config, config: Config, into: Path) -> dict[str, Any]:
    """Recompute a session.

    Parameters
    ----------
    out : Path
        The session's folder, with its raw volumes.
    recorded, config : Config
        The session's settings, and those to use now.
    into : Path
        New folder for a log with computed in place of recorded results, its tables, and ``rerun.json``, ``rerun.tsv``, ``rerun.npz``
        (requested latents) and ``rerun.png``.

    Returns
    -------
    dict
        The comparison, as in ``rerun.json``.

    Raises
    ------
    RtevoError
        The session cannot be recomputed, or not with these settings.
    """
    session = RecordedSession(out)
    if session.localizer:
        raise DataError(
            f"--rerun {out}: expected a session in which images evolve, found a localizer: `rtevo realign` aligns its volumes again"
        )
    changed = _changed(recorded, config)
    _check(session, recorded, config)
    from threadpoolctl import threadpool_limits

    into.mkdir(mode=0o700, parents=True)
    with threadpool_limits(1):  # as in a session: sums in another order differ in the last bit
        decoded = _decode(session, config)
        past = _evolve(session, config, decoded)
    _write_log(session.log, decoded, past, into)
    now = RecordedSession(into)
    now.save()
    return compare(session, now, past, changed)


def _changed(recorded: Config, config: Config) -> list[str]:
    """Return the settings that differ from the session's own, with both values."""
    before, now = asdict(recorded), asdict(config)
    return [
        f"[{section}] {key}: {before[section][key]!r} -> {value!r}"
        for section, own in now.items()
        for key, value in own.items()
        if value != before[section][key] and (section, key) != ("record", "out")
    ]


def _check(session: RecordedSession, recorded: Config, config: Config) -> None:
    out, before, now = session.out, asdict(recorded), asdict(config)
    fixed = [(s, k) for s, keys in _AS_RECORDED.items() for k in keys if before[s][k] != now[s][k]]
    if fixed:
        raise ConfigError(
            [f"[{s}] {k}: expected {before[s][k]!r} as in the session that is computed again, got {now[s][k]!r}" for s, k in fixed]
        )
    if now["physio"]["terms"] not in (before["physio"]["terms"], ()):
        raise ConfigError(
            f"[physio] terms: expected {list(recorded.physio.terms)} as in the session that is computed again, or none, got "
            f"{list(config.physio.terms)}: what was made of pulse and respiration was recorded"
        )
    absent = [index for index in session.absent if index not in session.unsaved]
    if session.sealed:
        raise DataError(f"--rerun {out}: the session is sealed, and the results would show its condition: unseal its study first")
    if not session.came:
        raise DataError(f"--rerun {out}: expected at least one volume, found none")
    if absent:
        raise DataError(
            f"--rerun {out}: {len(absent)} of {len(session.came)} raw volumes are missing (first: "
            f'{volume_path(out, absent[0])}); sessions keep them with [record] save_volumes = "raw"'
        )
    if session.unsaved:
        say(f"--rerun {out}: {gone(session.unsaved)}")


# --- decoding ------------------------------------------------------------------------------------------------------------------------


class _Decoded:
    """Results of decoding, by the number of the preceding record."""

    def __init__(self) -> None:
        self.records: dict[int, list[Record]] = {}
        self.volumes: list[Volume] = []  # that a strategy looks at
        self.scores: list[tuple[int, Score]] = []  # with the number of the volume, counted from 0, after which it came


def _decode(session: RecordedSession, config: Config) -> _Decoded:
    from rich.progress import track

    from rtevo.decode import load_decoder
    from rtevo.past.decoding import Again
    from rtevo.realign import warm_up
    from rtevo.session.decoding import Decoding
    from rtevo.session.placing import Hints
    from rtevo.session.takeover import before_of

    warm_up(say)
    settings = config.decoder
    folder = Path(settings.folder) if settings.folder else session.out / "decoder"
    decoder, tr_s = load_decoder(folder, settings.name or None, settings.objective, settings.more_folders), session.start.tr_s
    names = () if decoder.goal is None else decoder.goal.maps
    hints, before = Hints.of(config, decoder), before_of(config, decoder, tr_s)
    recorded = {(r.index, r.flags & VolumeFlag.LATE): r for r in session.records(AlignedRecord)}  # a gap, and what came late
    found, volume, firsts = _Decoded(), -1, [part.start.first_volume for part in session.parts]
    again = Again(session.out, session.log, lambda first, decide: Decoding(config, decoder, tr_s, first, decide, hints, before))
    for record, aligned, scores, reliability in track(again, "computing", again.volumes, transient=True):
        own = found.records.setdefault(record.seq, [])
        if aligned is not None:
            volume += 1
            assert isinstance(record, VolumeRecord)
            own.append(_aligned(aligned, record, recorded.get((aligned.index, aligned.flags & VolumeFlag.LATE))))
        for used in again.decoding.used():
            found.volumes.append((bisect_right(firsts, used.index) - 1, used))
            own.append(SeriesRecord(clock_ns=record.clock_ns, part=found.volumes[-1][0], **asdict(used)))
        for score in scores:
            found.scores.append((volume, score))
            own.append(
                ScoreRecord(
                    clock_ns=record.clock_ns,
                    generation=score.key[0],
                    candidate=score.key[1],
                    revision=score.revision,
                    volumes_used=score.volumes_used,
                    score=score.score,
                    score_se=score.score_se,
                    reliability=reliability,
                    onset_s=score.onset_s,
                    maps={name: list(own) for name, own in zip(names, score.maps, strict=True)} if score.maps else None,
                    lag_s=score.lag_s,
                    lag_sd_s=score.lag_sd_s,
                    width=score.width,
                    width_sd=score.width_sd,
                    measured=score.measured,
                    measured_se=score.measured_se,
                    neighbours=score.padded(),
                    nuisance=list(score.nuisance) or None,
                )
            )
    again.decoding.close()
    return found


def _aligned(aligned: Aligned, volume: VolumeRecord, recorded: AlignedRecord | None) -> AlignedRecord:
    """Return the record of a volume that was aligned again, with the recorded times."""
    times = recorded or replace(AlignedRecord(), **{name: getattr(volume, name) for name in ("acquired_s", "closed_ns", "ingested_ns")})
    return replace(
        times,
        clock_ns=volume.clock_ns,
        index=aligned.index,
        flags=aligned.flags,
        motion=aligned.motion.tolist(),
        framewise_displacement_mm=aligned.displacement_mm,
        dvars_percent=aligned.dvars_percent,
        tsnr=aligned.tsnr,
        aligned_ns=times.aligned_ns or volume.ingested_ns,
    )


# --- evolution -----------------------------------------------------------------------------------------------------------------------


def _evolve(session: RecordedSession, config: Config, decoded: _Decoded) -> Past:
    """Feed the new scores to a new evolution, in the order in which they would have come."""
    from rtevo.latent import LatentSpace
    from rtevo.session import course
    from rtevo.session.safety import avoid_of

    log, space = session.log, LatentSpace.load(session.out / "latent_space.npz")
    avoid = avoid_of(config, space, session.out)
    condition = course.check(config, space, avoid)
    images = session.records(ImageRecord) if config.evolution.use_post_encodings else []
    place = {(r.generation, r.candidate): space.to_latent(r.embedding[np.newaxis])[0] for r in images}
    told: Sequence[Scored] = measured(log, condition)
    taken: Callable[[int], int] = _same
    if condition not in MEASURED:
        names = [(r.generation, r.candidate, r.revision) for r in session.records(ScoreRecord)]
        told = [
            (score.key, score.score, score.score_se, Link.of(score.onset_s, score.measured, score.measured_se, score.neighbours))
            for _, score in decoded.scores
        ]
        if names != [(*score.key, score.revision) for _, score in decoded.scores]:
            taken = _by_volumes(log, [volume for volume, _ in decoded.scores])
    try:
        return go_through(course.make_course(config, condition, space, avoid), log, told, place, taken, decoded.volumes)
    except ValueError as problem:
        raise ConfigError(f"--rerun {session.out}: evolution with these settings does not fit the recorded images: {problem}") from None


def _same(recorded: int) -> int:
    return recorded


def _by_volumes(log: Sequence[Record], volumes: list[int]) -> Callable[[int], int]:
    """Return the function from the number of recorded scores to the number of new scores after the same volume."""
    at, last = [-1], -1
    for record in log:
        last += isinstance(record, AlignedRecord)
        if isinstance(record, ScoreRecord):
            at.append(last)
    return lambda recorded: bisect_right(volumes, at[min(recorded, len(at) - 1)])


def _write_log(log: Sequence[Record], decoded: _Decoded, past: Past, into: Path) -> None:
    """Write the session's log with the computed results in place of the recorded ones; the rest is unchanged."""
    fitness = [
        FitnessRecord(
            clock_ns=log[-1].clock_ns,
            generation=told.generation,
            candidate=told.candidate,
            fitness=told.fitness,
            fitness_se=told.fitness_se,
            scores_taken=number,
            given_up=int(given_up),
        )
        for told, number, given_up in past.steps
    ]
    with LogWriter(into / LOG) as new:
        for record in log:
            before = [record] if isinstance(record, VolumeRecord) else []
            after = [] if isinstance(record, (AlignedRecord, ScoreRecord, SeriesRecord, FitnessRecord, VolumeRecord)) else [record]
            for own in [*before, *decoded.records.get(record.seq, []), *(fitness if record is log[-1] else []), *after]:
                new.add(own)
