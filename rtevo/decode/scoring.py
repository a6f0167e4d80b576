"""Scores of recorded events by a session's own path, and how well they separate the events."""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.decode.elsewhere import maps_for_run, sentence
from rtevo.decode.events import Event, blocks, parse_target
from rtevo.decode.folder import Decoder, maps_in
from rtevo.decode.maps import load_decoder
from rtevo.decode.recorded import aligned, events_of, open_with
from rtevo.decode.score import Score, spearman_brown
from rtevo.decode.scorer import Scorer
from rtevo.decode.selection import area, pooled
from rtevo.decode.several import SeveralScorer, scorer_of
from rtevo.errors import DataError, DecoderError, GeometryError
from rtevo.realign.series import Run

__all__ = ["Replayed", "replay", "replay_maps", "rows_of", "score_run", "table_of"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Replayed:
    """One map's scores of a run.

    Parameters
    ----------
    decoder : Decoder
    scores : list of Score
        The last word on each event.
    reliability : float
        Expected squared correlation with the responses, by the model; NaN where the method gives none.
    split_half : float
        Correlation of the scores of the even with those of the odd volumes, stepped up to all volumes; NaN if not requested.
    """

    decoder: Decoder
    scores: list[Score]
    reliability: float
    split_half: float


def replay(decoder: Decoder, run: Run, events: Sequence[Event], method: Any) -> list[Score]:
    """Score the events of a recorded run volume by volume, in the order in which a session would learn of them.

    Returns
    -------
    list of Score
        The last word on each event.
    """
    return replay_maps([decoder], run, events, method)[0].scores


def replay_maps(decoders: Sequence[Decoder], run: Run, events: Sequence[Event], method: Any, halves: bool = False) -> list[Replayed]:
    """Score the events of a recorded run by several maps of one folder, aligning each volume once.

    Parameters
    ----------
    decoders : sequence of Decoder
        Of one reference and mask.
    run : Run
        On the decoders' grid.
    events : sequence of Event
    method : str
        See :class:`Scorer`.
    halves : bool
        Score the even and the odd volumes by themselves as well, for `split_half`.

    Returns
    -------
    list of Replayed
    """
    duration_s = float(np.median([event.duration_s for event in events]))

    def scorer(decoder: Decoder) -> Scorer | SeveralScorer:
        fwhm_mm = float(decoder.settings.get("fwhm_mm", 4.0))
        return scorer_of(decoder, run.tr_s, method=method, fwhm_mm=fwhm_mm, duration_s=duration_s)

    ways = (None, 0, 1) if halves else (None,)  # all volumes, the even ones, the odd ones
    scorers = [(scorer(decoder), way) for decoder in decoders for way in ways]
    found: list[dict[tuple[int, int], Score]] = [{} for _ in scorers]
    shown = 0
    for index, volume, motion in aligned(run, decoders[0].reference, decoders[0].mask):
        while shown < len(events) and events[shown].onset_s < (index + 1) * run.tr_s:
            for one, _ in scorers:
                one.add_onset((0, shown), events[shown].onset_s)
            shown += 1
        for (one, way), last in zip(scorers, found, strict=True):
            one.add_volume(index, volume if way is None or index % 2 == way else None, motion)
            last.update({score.key: score for score in one.ready()})
    for (one, _), last in zip(scorers, found, strict=True):
        last.update({score.key: score for score in one.ready(final=True)})
    lists = [[last[0, k] for k in range(len(events))] for last in found]
    step = len(ways)
    made = []
    for k, decoder in enumerate(decoders):
        split = _split_half(lists[k * step + 1], lists[k * step + 2]) if halves else math.nan
        made.append(Replayed(decoder, lists[k * step], scorers[k * step][0].reliability(), split))
    whole = scorers[0][0]
    return made if not isinstance(whole, SeveralScorer) else [*made, *_of_maps(made[0], whole)]


def _of_maps(found: Replayed, scorer: SeveralScorer) -> list[Replayed]:
    """What the maps of an objective say, as it was when the objective was scored last."""
    return [
        Replayed(
            decoder, [replace(s, score=s.maps[k][0], score_se=s.maps[k][1], maps=()) for s in found.scores], own.reliability(), math.nan
        )
        for k, (decoder, own) in enumerate(zip(found.decoder.maps, scorer.each, strict=True))
    ]


def _split_half(even: list[Score], odd: list[Score]) -> float:
    """Reliability of all volumes' scores from those of two halves of the volumes."""
    pairs = np.array([(a.score, b.score) for a, b in zip(even, odd, strict=True)])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    if len(pairs) < 3 or not (np.ptp(pairs, axis=0) > 0).all():
        return math.nan
    return spearman_brown(float(np.corrcoef(pairs.T)[0, 1]))


def _decoders(options: argparse.Namespace) -> list[Decoder]:
    """Load the requested maps, or an objective over them."""
    if options.objective:
        if options.name:
            raise DecoderError("--name: expected none with --objective, which names its maps")
        return [load_decoder(options.decoder, None, options.objective, options.more_folders or ())]
    if options.more_folders:
        raise DecoderError("--more-folders: expected --objective, which names their maps")
    return [Decoder.load(options.decoder, name) for name in options.name or _names(options.decoder)]


def score_run(options: argparse.Namespace) -> str:
    """Score a run by one or all maps of a folder, or by an objective over them; return what to print."""
    decoders = _decoders(options)
    run = open_with(options.run, options)
    trained_s = decoders[0].settings.get("tr_s")
    if isinstance(trained_s, float) and abs(run.tr_s / trained_s - 1) > 0.01:
        sys.stderr.write(f"rtevo: the decoder was made at a repetition time of {trained_s:g} s, this run has {run.tr_s:g} s\n")
    try:
        made, placement = maps_for_run(decoders, run)
    except DataError as problem:
        raise GeometryError(f"{options.run}: {problem}") from None
    if placement is not None:
        sys.stderr.write(f"rtevo: {options.run}: {sentence(placement)}\n")
    events = events_of(options.events, run, options.first)
    replayed = replay_maps(made, run, events, options.method, halves=options.halves)
    missing = [event.onset_s for k, event in enumerate(events) if math.isnan(replayed[0].scores[k].score)]
    if missing:
        sys.stderr.write(
            f"rtevo.decode: {len(missing)} of {len(events)} events have no score, the first at {missing[0]:g} s: no usable volume "
            f"shows their response (the run has volumes from {_first(run) * run.tr_s:g} to {run.count * run.tr_s:g} s)\n"
        )
    rows, table = rows_of(replayed, events), table_of(replayed, events)
    if options.out is None:
        sys.stderr.write(table)
        return rows
    options.out.write_text(rows, encoding="utf-8")
    return f"{table}{len(events)} events scored: {options.out}\n"


def _names(folder: Path) -> list[str | None]:
    """Maps of a folder that are scored where none is named: the one that it names, else all."""
    try:
        return [Decoder.load(folder).name]
    except DecoderError:
        return list(maps_in(folder)) if folder.is_dir() and len(maps_in(folder)) > 1 else [None]


def _first(run: Run) -> int:
    """Return the number of the first recorded volume."""
    return next((index for index in range(run.count) if run.volume(index) is not None), 0)


def rows_of(replayed: Sequence[Replayed], events: Sequence[Event]) -> str:
    """Write the scores as a table: columns score and score_se of one map, NAME and NAME_se of several."""
    several = len(replayed) > 1
    columns = [name for one in replayed for name in ((one.decoder.name, f"{one.decoder.name}_se") if several else ("score", "score_se"))]
    text = StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["onset", "duration", "trial_type", *columns, "volumes_used"])
    for k, event in enumerate(events):
        numbers = [number for one in replayed for number in (one.scores[k].score, one.scores[k].score_se)]
        cells = ["n/a" if math.isnan(number) else f"{number:.6g}" for number in numbers]
        used = str(replayed[0].scores[k].volumes_used)
        onset = event.values.get("onset", f"{event.onset_s:g}")
        writer.writerow([onset, f"{event.duration_s:g}", event.trial_type or "n/a", *cells, used])
    return text.getvalue()


def table_of(replayed: Sequence[Replayed], events: Sequence[Event]) -> str:
    """Report how well the scores separate the kinds of event, by images and by blocks, and how reliable they are."""
    kinds = sorted({event.trial_type for event in events if event.trial_type})
    groups = blocks(events, [kinds.index(event.trial_type) if event.trial_type else math.nan for event in events])
    lines = [f"{'map':<16}{'image AUC':>10}{'block AUC':>10}{'reliability':>12}{'split-half':>11}"]
    for one in replayed:
        values = np.array([score.score for score in one.scores])
        labels = _labels(one.decoder, events, kinds)
        means = np.array([np.mean(values[group]) for group in groups])
        signs = np.array([labels[group[0]] for group in groups])
        areas = _area(values, labels), _area(means, signs)
        cells = [f"{number:.3f}" if math.isfinite(number) else "n/a" for number in (*areas, one.reliability, one.split_half)]
        lines.append(f"{one.decoder.name:<16}{cells[0]:>10}{cells[1]:>10}{cells[2]:>12}{cells[3]:>11}")
    maps = [one for one in replayed if one.decoder.goal is None]
    own = [str(one.decoder.settings.get("category", one.decoder.name)) for one in maps]
    if len(set(own) & set(kinds)) > 1:
        scores = np.array([[score.score for score in one.scores] for one in maps]).T
        shown = [k for k, event in enumerate(events) if event.trial_type in own]
        images = pooled(scores[shown], np.array([own.index(events[k].trial_type) for k in shown]))
        counted = [group for group in groups if events[group[0]].trial_type in own]
        label = np.array([own.index(events[group[0]].trial_type) for group in counted])
        whole = pooled(np.array([scores[group].mean(axis=0) for group in counted]), label)
        lines.append(f"{'all, pooled':<16}{images[0]:>10.3f}{whole[0]:>10.3f}")
        chance = 1 / len(own)
        count = f"{len(shown)} images, {len(counted)} blocks"
        lines.append(f"{len(own)}-way accuracy: images {images[1]:.3f}, blocks {whole[1]:.3f} (chance {chance:.3f}; {count})")
    return "\n".join(lines) + "\n"


def _labels(decoder: Decoder, events: Sequence[Event], kinds: Sequence[str]) -> Array:
    """Side of each event for a map: 1, -1, or NaN where it is on neither; for an objective by the signs of its maps."""
    if decoder.goal is not None:
        weights = np.array([decoder.goal.linear, decoder.goal.rank]).sum(axis=0)
        sides = {str(one.settings.get("category", one.name)): float(np.sign(w)) for one, w in zip(decoder.maps, weights, strict=True) if w}
        rest = math.nan if len(set(sides.values())) > 1 else -sum(set(sides.values()))
        return np.array([sides.get(event.trial_type, rest) if event.trial_type else math.nan for event in events])
    category = str(decoder.settings.get("category", decoder.name))
    if category not in kinds:
        try:
            target = parse_target(str(decoder.settings.get("target", category)), events)
        except DataError:
            return np.full(len(events), math.nan)
        return target.coefficients if target.categorical else np.full(len(events), math.nan)
    return np.array([math.nan if not event.trial_type else 1.0 if event.trial_type == category else -1.0 for event in events])


def _area(values: Array, labels: Array) -> float:
    """Return the area under the ROC curve of the known values."""
    known = np.isfinite(values)
    return area(values[known & (labels > 0)], values[known & (labels < 0)])
