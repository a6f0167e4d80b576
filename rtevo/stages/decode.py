"""``volumes`` and ``events`` -> ``aligned`` and ``scores``."""

from __future__ import annotations

import json
import logging
import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtevo.config import Config
from rtevo.errors import DecoderError
from rtevo.place import Verdict
from rtevo.record import placement_folder, reference_path
from rtevo.records import Decision, EventKind, Grid, Projected, RunClock, VolumeFlag, put_volume, volume_of
from rtevo.session.context import WAIT_S, Context, serve
from rtevo.session.pulses import PulseWatch
from rtevo.session.rings import looks_at_volumes

if TYPE_CHECKING:
    from rtevo.decode import Score
    from rtevo.physio.regressors import State
    from rtevo.place import Placement
    from rtevo.session.decoding import Aligned, Decide, Decoding
    from rtevo.session.placing import Attempt

EDGE_SCORES = 12  # images, before the warning that the response lies at the edge
ATTEMPTS = 3  # to place the decoder, where nobody can be asked
DECIDED = {
    Decision.PENDING: "",
    Decision.ACCEPTED: " (accepted by the operator)",
    Decision.AGAIN: " (the next volumes are tried)",
}


class _Decode:
    """The decode stage between volumes."""

    def __init__(self, context: Context) -> None:
        from rtevo import place, realign
        from rtevo.decode import load_decoder
        from rtevo.decode.carry import warm_up
        from rtevo.decode.deconvolve import warm_up as warm_up_filters
        from rtevo.session.physio import Heard
        from rtevo.session.placing import Hints
        from rtevo.session.takeover import before_of

        plan, settings = context.plan, context.config.decoder
        realign.warm_up(lambda text: _say_once(context, text))
        for each in (place.warm_up, warm_up, warm_up_filters):
            each()
        self.context, self.compared, self.holes = context, False, False
        self.decoder = load_decoder(plan.decoder, plan.decoder_name, settings.objective, settings.more_folders)
        self.artefacts, self.last, self.answered, self.at_edge = 0, plan.first_volume - 1, 0, False
        self.hints = Hints.of(context.config, self.decoder)
        self.before = before_of(context.config, self.decoder, plan.tr_s)
        if self.hints.placement is not None:
            context.log.info("decode: on the scan of this visit, %s", words(self.hints.placement, self.decoder.grid))
        self._warm()
        self.aligned, self.scores, self.placements = context.writer("aligned"), context.writer("scores"), context.writer("placements")
        self.series = context.writer("series") if looks_at_volumes(context.config) else None
        self.save = context.config.record.save_volumes in ("aligned", "both")
        self.run = RunClock(plan.tr_s, plan.first_volume)
        self.closed_ns: dict[int, int] = {}
        self.scored: set[tuple[int, int]] = set()
        self.events_taken = 0  # whoever decodes again takes as many before each volume
        self.physio = Heard(context) if context.config.physio.measured else None
        keep = plan.part > 0 and not plan.rebaseline
        self.decoding = self._take_up() if keep else self._make(plan.first_volume, self._decide)

    def _make(self, first: int, decide: Decide) -> Decoding:
        from rtevo.session.decoding import Decoding

        return Decoding(self.context.config, self.decoder, self.context.plan.tr_s, first, decide, self.hints, self.before)

    def _warm(self) -> None:
        """Run each step once, with a realigner of its own: the session's starts from the head's last position."""
        from rtevo.record.making import as_they_come
        from rtevo.session.decoding import Decoding
        from rtevo.session.placing import Hints

        decoding = Decoding(
            as_they_come(self.context.config), self.decoder, self.context.plan.tr_s, 0, lambda _: Decision.ACCEPTED, Hints()
        )
        decoding.learn(decoding.align(0, self.decoder.reference, 0, self.decoder.grid))
        decoding.close()

    def _take_up(self) -> Decoding:
        """Decode the recorded volumes again, to restore the decoder's state; publish what the log lacks."""
        from rtevo.past.decoding import Again
        from rtevo.record import AlignedRecord, ScoreRecord, SeriesRecord, Start, earlier, of_kind

        context, plan = self.context, self.context.plan
        past = earlier(plan.out, plan.part)
        begun = max((k for k, r in enumerate(past) if isinstance(r, Start) and r.decoder_state == "rebaselined"), default=0)
        known = {(r.generation, r.candidate, r.revision) for r in of_kind(past, ScoreRecord)}
        aligned = {(r.index, r.flags & VolumeFlag.LATE) for r in of_kind(past, AlignedRecord)}
        projected = {r.index for r in of_kind(past, SeriesRecord)}
        firsts = [r.first_volume for r in of_kind(past, Start)]
        again = Again(plan.out, past[begun:], self._make, kept=True)
        volumes = again.volumes
        context.log.info("decode: restoring the decoder from %d recorded volumes", volumes)
        for done, (record, volume, scores, reliability) in enumerate(again):
            context.progress(f"{done} of {volumes} recorded volumes processed")
            if volume is not None and (volume.index, volume.flags & VolumeFlag.LATE) not in aligned:
                self.publish_aligned(volume, record.fields())
            self.publish_scores([s for s in scores if (*s.key, s.revision) not in known], reliability)
            for used in again.decoding.used():
                if used.index not in projected:
                    self.publish_series([used], bisect_right(firsts, used.index) - 1)
        again.decoding.interrupt()
        again.decoding.decide_by(self._decide)
        return again.decoding

    def event(self, slot: Any) -> None:
        """Process the trigger, onsets, and images that are taken away."""
        self.events_taken += 1
        if slot["kind"] == EventKind.TRIGGER:  # a second one corrects it, before any image
            self.run = self.run.triggered(slot["t_ns"])
        elif slot["kind"] in (EventKind.ONSET, EventKind.TAKEN) and self.run.trigger_ns is not None:
            take = self.decoding.onset if slot["kind"] == EventKind.ONSET else self.decoding.taken
            take((int(slot["generation"]), int(slot["candidate"])), self.run.seconds(slot["t_ns"]))

    def volume(self, slot: Any) -> None:
        """Align one volume, publish its motion, and the scores that it completes."""
        from rtevo.realign import first_echo

        index, flags = int(slot["index"]), int(slot["flags"])
        volume, grid = volume_of(slot)
        said = json.loads(slot["acquisition"]) if slot["acquisition"] else None
        state = None if self.physio is None else self.physio.volume(slot, self.run, self.decoding.decoder)
        terms = None if state is None else state.terms
        aligned = self.decoding.align(index, None if flags & VolumeFlag.MISSING else volume, flags, grid, said, terms)
        self.last = index
        if not flags & VolumeFlag.MISSING:
            self.context.clock.set("unusable", self.context.clock.get("unusable") + 1 if aligned.data is None else 0)
        self.publish_placements()
        if aligned.data is not None and not self.compared and self.decoding.placed and not flags & VolumeFlag.LATE:
            self.compare(aligned.motion)
        if aligned.data is None and not math.isnan(aligned.motion[0]) and not self.holes:
            self.holes = True
            self.context.log.warning("decode: volumes with NaN or infinite values in the decoder's mask are left out")
        self.closed_ns[index] = int(slot["closed_ns"])
        self.publish_aligned(aligned, slot, first_echo(volume), self.events_taken, state)
        before = self.decoding.left_out
        self.decoding.learn(aligned)
        self.publish_series(self.decoding.used(), self.context.plan.part)
        if aligned.data is not None and self.decoding.left_out > before:
            self.artefact(index)
        self.publish()

    # --- placement ------------------------------------------------------------------------------------------------------------------

    def _decide(self, attempt: Attempt) -> Decision:
        """Accept what is good; ask the operator about the others; where there is nobody, try the next volumes."""
        if attempt.placement.verdict == Verdict.GOOD:
            return Decision.ACCEPTED
        if self.context.plan.attended or attempt.number + 1 >= ATTEMPTS:
            return Decision.PENDING
        return Decision.AGAIN

    def answer(self) -> None:
        """Carry out the operator's decision."""
        waiting, answer = self.decoding.undecided, self.context.clock.get("placement_answer")
        if waiting is None or answer == self.answered or answer // 4 != waiting.number + 1:
            return
        self.answered = answer
        decision = Decision(answer % 4)
        if decision == Decision.ACCEPTED and not acceptable(waiting.placement, self.context.config):
            return
        self.decoding.decide(decision, self.last)
        self.publish_series(self.decoding.used(), self.context.plan.part)
        self.publish_placements()
        self.publish()

    def publish_placements(self) -> None:
        """Publish attempts to place the decoder; with an accepted one images are shown.

        Raises
        ------
        DecoderError
            The decoder cannot be placed, and there is no operator to decide.
        """
        clock, out = self.context.clock, self.context.plan.out
        news, self.decoding.news = self.decoding.news, []
        for attempt in news:
            if attempt.decision == Decision.PENDING:
                self.save_reference(attempt)
            log = self.context.log.info if attempt.placement.verdict == Verdict.GOOD else self.context.log.warning
            if attempt.decision == Decision.PENDING or attempt.placement.verdict != Verdict.GOOD:
                log("decode: %s%s", words(attempt.placement, self.decoder.grid), DECIDED[attempt.decision])
            with self.placements.reserve(timeout_s=30) as slot:
                _fill(slot, attempt)
            if attempt.decision == Decision.ACCEPTED:
                if self.decoding.renewed:
                    self.context.log.warning("decode: this part lies on another grid than the one before: scoring starts anew")
                clock.set("placed", clock.get("placed") + 1)
                self._save_decoder(out, attempt)
        waiting = self.decoding.undecided
        clock.set("placement_asked", 0 if waiting is None else waiting.number + 1)
        if waiting is not None and not self.context.plan.attended:
            raise DecoderError(
                f"the decoder could not be placed on today's head in {ATTEMPTS} attempts, and nobody is at the console or the terminal to "
                f"decide: {words(waiting.placement, self.decoder.grid)}. See {placement_folder(out, self.context.plan.part)}"
            )

    def save_reference(self, attempt: Attempt) -> None:
        """Save today's reference: what the overlay is drawn on."""
        import nibabel

        path = reference_path(self.context.plan.out, self.context.plan.part, attempt.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert self.decoding.grid is not None
        nibabel.save(nibabel.Nifti1Image(attempt.reference, self.decoding.grid.affine), path)

    def _save_decoder(self, out: Path, attempt: Attempt) -> None:
        """Save the decoder as it lies on today's grid."""
        from rtevo.session.takeover import save_decoder

        if self.decoding.decoder is not None and not attempt.own_grid:
            save_decoder(placement_folder(out, self.context.plan.part) / "decoder", self.decoding.decoder)

    def end(self) -> None:
        """Publish the final scores of all images; keep what the next run of the visit may take over."""
        from rtevo.session.takeover import save_state

        plan = self.context.plan
        self.publish(final=True)
        self.scores.close_writing()
        if self.series is not None:
            self.series.close_writing()
        self.aligned.close_writing()
        if plan.visit is not None:
            save_state(plan.out, self.decoding, self.context.config, self.decoder, plan.tr_s)

    def artefact(self, index: int) -> None:
        """Record a volume that is left out; warn of the first, the second, the fourth, and so on."""
        self.artefacts += 1
        level = logging.WARNING if self.artefacts.bit_count() == 1 else logging.INFO
        text = "decode: volume %d is left out as an artefact: over 6 standard deviations from its prediction by those before (%d so far)"
        self.context.log.log(level, text, index, self.artefacts)

    def compare(self, motion: Any) -> None:
        """Warn if the run differs from the decoder's."""
        from rtevo.decode import differences

        self.compared = True
        plan, fwhm_mm = self.context.plan, self.context.config.decoder.fwhm_mm
        assert self.decoding.quality is not None
        gain, maps = self.decoding.quality.gain(), self.decoder.maps or (self.decoder,)
        for difference in dict.fromkeys(each for one in maps for each in differences(one, plan.tr_s, fwhm_mm, gain, motion)):
            self.context.log.warning("decode: %s", difference)

    def publish_aligned(self, aligned: Aligned, volume: Any, data: Any = None, events_taken: int = -1, state: State | None = None) -> None:
        """Publish what is known of a volume; `volume` says when it came, `data` stands in where it could not be aligned."""
        from rtevo.stages.ingest import NO_GRID

        aligned_ns = time.monotonic_ns()
        with self.aligned.reserve(timeout_s=None) as out:  # a slow disk holds it up, and loses nothing
            for name in ("index", "acquired_s", "closed_ns", "ingested_ns"):
                out[name] = volume[name]
            out["flags"], out["motion"], out["aligned_ns"] = aligned.flags, aligned.motion, aligned_ns
            out["framewise_displacement_mm"] = aligned.displacement_mm
            out["dvars_percent"], out["tsnr"], out["events_taken"] = aligned.dvars_percent, aligned.tsnr, events_taken
            if self.physio is not None:
                out["physio"] = 0.0 if aligned.physio is None else aligned.physio
                for name in ("heart_rate", "respiration_rate"):
                    out[name] = math.nan if state is None else getattr(state, name)
            if self.save:
                put_volume(out, data if aligned.data is None else aligned.data, self.decoding.grid or NO_GRID)

    def publish_series(self, used: Sequence[Projected], part: int) -> None:
        """Publish volumes that scores have used, if evolution uses volumes."""
        for volume in used if self.series is not None else ():
            assert self.series is not None
            with self.series.reserve(timeout_s=30) as out:
                out["part"] = part
                for name, value in asdict(volume).items():
                    out[name] = value

    def publish(self, final: bool = False) -> None:
        """Publish the scores that are ready."""
        self.publish_scores(*self.decoding.scores(final))

    def publish_scores(self, scores: list[Score], reliability: float) -> None:
        """Publish scores."""
        for score in scores:
            with self.scores.reserve(timeout_s=30) as out:
                out["generation"], out["candidate"] = score.key
                for name in ("revision", "volumes_used", "score", "score_se", "onset_s", "lag_s", "lag_sd_s", "width", "width_sd"):
                    out[name] = getattr(score, name)
                out["measured"], out["measured_se"], out["neighbours"] = score.measured, score.measured_se, score.padded()
                out["reliability"] = reliability
                if score.maps:
                    out["maps"] = score.maps
                if score.nuisance:
                    out["nuisance"] = score.nuisance
                out["closed_ns"] = self.closed_ns.get(score.last_volume_index, 0)
                out["scored_ns"] = time.monotonic_ns()
            if math.isfinite(score.score):
                self.scored.add(score.key)
        self.context.clock.set("scored", len(self.scored))
        if scores and not self.at_edge and len(self.scored) >= EDGE_SCORES:
            self.look_at_response()

    def look_at_response(self) -> None:
        """Warn where the response lies at the edge of what is considered."""
        found = self.decoding.response
        if found is None or found.edge < 0.5 or len(found.lags_s) < 2:
            return
        self.at_edge = True
        self.context.log.warning(
            "decode: the response comes %+.1f s against the canonical one, at the edge of the %.1f to %.1f s considered: check "
            "that onsets and repetition time are right, and fit the decoder to this participant's own run",
            found.lag_s, found.lags_s[0], found.lags_s[-1],
        )  # fmt: skip


def _say_once(context: Context, text: str) -> None:
    """Report slow work at the start, in the log and in the line that shows the state."""
    context.log.info("decode: %s", text)
    context.progress(text)


def acceptable(placement: Placement, config: Config) -> bool:
    """Whether the operator may accept a placement."""
    return placement.verdict == Verdict.GOOD or (placement.verdict == Verdict.DOUBTFUL and config.decoder.doubtful == "wait")


def words(placement: Placement, grid: Grid) -> str:
    """Return how the decoder lies on today's head."""
    centre = grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1.0]
    shift_mm = float(np.linalg.norm((placement.matrix @ centre - centre)[:3]))
    turn_deg = math.degrees(math.acos(min(1.0, max(-1.0, (float(np.trace(placement.matrix[:3, :3])) - 1) / 2))))
    figures = (
        f"the decoder's placement is {placement.verdict}: {shift_mm:.1f} mm and {turn_deg:.1f} degrees away, expected error "
        f"{placement.expected_error_mm:.2f} mm, correlation {placement.correlation:.2f}, {placement.weight_kept:.0%} of its weight in view"
    )
    return "; ".join([figures, *placement.reasons])


def _fill(slot: Any, attempt: Attempt) -> None:
    """Write an attempt into a slot of ``placements``."""
    found = attempt.placement
    slot["attempt"], slot["volume"], slot["own_grid"], slot["decision"] = attempt.number, attempt.volume, attempt.own_grid, attempt.decision
    for name in ("matrix", "correlation", "overlap", "weight_kept", "expected_error_mm"):
        slot[name] = getattr(found, name)
    slot["verdict"], slot["placed_ns"] = str(found.verdict).encode(), time.monotonic_ns()
    slot["reasons"] = "\n".join(found.reasons).encode()[:1000].decode(errors="ignore").encode()


def run(context: Context) -> None:
    """``volumes`` and ``events`` -> ``aligned`` and ``scores``."""
    work, pulses = _Decode(context), PulseWatch(context)
    handlers = pulses.beside(work)
    inputs = {"events": context.reader("events"), "volumes": context.reader("volumes")}
    if work.physio is not None:
        inputs["physiology"], handlers["physiology"] = work.physio.ring, work.physio.terms.take
    context.ready()
    while inputs and not context.clock.get("abort"):
        ended = serve(inputs, handlers, WAIT_S)
        work.answer()
        if "volumes" in ended:
            pulses.finish()
            work.end()
    work.decoding.close()
