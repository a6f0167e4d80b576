"""``volumes`` and ``events`` -> ``aligned`` and ``scores``."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from rtevo.records import EventKind, VolumeFlag
from rtevo.stages.context import WAIT_S, Context, serve
from rtevo.stages.reconcile import Reconcile

if TYPE_CHECKING:
    from rtevo.decode import Score
    from rtevo.stages.decoding import Aligned, Decoding


class _Decode:
    """The decode stage between volumes."""

    def __init__(self, context: Context) -> None:
        from rtevo.decode import Decoder
        from rtevo.realign import warm_up

        plan = context.plan
        warm_up()
        self.context, self.decoder, self.compared, self.holes = context, Decoder.load(plan.decoder, plan.decoder_name), False, False
        self.artefacts = 0
        self._warm()
        self.aligned, self.scores = context.writer("aligned"), context.writer("scores")
        self.save = context.config.record.save_volumes in ("aligned", "both")
        self.before_s = plan.first_volume * plan.tr_s  # time that earlier parts of the session took
        self.trigger_ns: int | None = None
        self.closed_ns: dict[int, int] = {}
        keep = plan.part > 0 and not plan.rebaseline
        self.decoding = self._take_up() if keep else self._make(plan.first_volume)

    def _make(self, first: int) -> Decoding:
        from rtevo.stages.decoding import Decoding

        return Decoding(self.context.config, self.decoder, self.context.plan.tr_s, first)

    def _warm(self) -> None:
        """Do everything once, with a realigner of its own: the session's starts from where the head lay last."""
        decoding = self._make(0)
        decoding.learn(decoding.align(0, self.decoder.reference, 0))
        decoding.close()

    def _take_up(self) -> Decoding:
        """Decode again what was recorded, so that the decoder stands where it stood; publish what the log does not hold of it."""
        from rtevo.record import earlier
        from rtevo.stages.decoding import Again

        context, plan = self.context, self.context.plan
        past = earlier(plan.out, plan.part)
        begun = max((k for k, r in enumerate(past) if r["type"] == "start" and r.get("decoder_state") == "rebaselined"), default=0)
        known = {(r["generation"], r["candidate"], r["revision"]) for r in past if r["type"] == "scores"}
        aligned = {(r["index"], r["flags"] & VolumeFlag.LATE) for r in past if r["type"] == "aligned"}
        again = Again(plan.out, past[begun:], self._make, kept=True)
        volumes = again.volumes
        context.log.info("decode: taking up the decoder from %d recorded volumes", volumes)
        for done, (record, volume, scores, reliability) in enumerate(again):
            context.progress(f"{done} of {volumes} recorded volumes taken up")
            if volume is not None and (volume.index, volume.flags & VolumeFlag.LATE) not in aligned:
                self.publish_aligned(volume, record)
            self.publish_scores([s for s in scores if (*s.key, s.revision) not in known], reliability)
        again.decoding.interrupt()
        return again.decoding

    def event(self, slot: Any) -> None:
        """Take note of the trigger and of onsets."""
        if slot["kind"] == EventKind.TRIGGER and self.trigger_ns is None:
            self.trigger_ns = int(slot["t_ns"])
        elif slot["kind"] == EventKind.ONSET and self.trigger_ns is not None:
            key = (int(slot["generation"]), int(slot["candidate"]))
            self.decoding.onset(key, self.before_s + (int(slot["t_ns"]) - self.trigger_ns) / 1e9)

    def volume(self, slot: Any) -> None:
        """Align one volume, publish its motion, and the scores that it completes."""
        index, flags = int(slot["index"]), int(slot["flags"])
        aligned = self.decoding.align(index, None if flags & VolumeFlag.MISSING else slot["data"], flags)
        if aligned.data is not None and not self.compared and not flags & VolumeFlag.LATE:
            self.compare(aligned.motion)
        if aligned.data is None and not math.isnan(aligned.motion[0]) and not self.holes:
            self.holes = True
            self.context.log.warning("decode: volumes with numbers in the decoder's mask that are not finite are left out")
        self.closed_ns[index] = int(slot["closed_ns"])
        self.publish_aligned(aligned, slot, slot["data"])
        before = self.decoding.left_out
        self.decoding.learn(aligned)
        if aligned.data is not None and self.decoding.left_out > before:
            self.artefact(index)
        self.publish()

    def artefact(self, index: int) -> None:
        """Note a volume that is left out; warn of the first, the second, the fourth, and so on."""
        self.artefacts += 1
        level = logging.WARNING if self.artefacts.bit_count() == 1 else logging.INFO
        text = "decode: volume %d is left out as an artefact: it lies over 6 standard deviations from what those before predict (%d so far)"
        self.context.log.log(level, text, index, self.artefacts)

    def compare(self, motion: Any) -> None:
        """Warn where the run is not like the decoder's."""
        from rtevo.decode import differences

        self.compared = True
        plan, fwhm_mm = self.context.plan, self.context.config.decoder.fwhm_mm
        for difference in differences(self.decoder, plan.tr_s, fwhm_mm, self.decoding.quality.gain(), motion):
            self.context.log.warning("decode: %s", difference)

    def publish_aligned(self, aligned: Aligned, volume: Any, data: Any = None) -> None:
        """Publish what is known of a volume; `volume` says when it came, `data` stands in where it could not be aligned."""
        aligned_ns = time.monotonic_ns()
        with self.aligned.reserve(timeout_s=None) as out:  # a slow disk holds it up, and loses nothing
            for name in ("index", "acquired_s", "closed_ns", "ingested_ns"):
                out[name] = volume[name]
            out["flags"], out["motion"], out["aligned_ns"] = aligned.flags, aligned.motion, aligned_ns
            out["framewise_displacement_mm"] = aligned.displacement_mm
            out["dvars_percent"], out["tsnr"] = aligned.dvars_percent, aligned.tsnr
            if self.save:
                out["data"][...] = 0 if data is None and aligned.data is None else data if aligned.data is None else aligned.data

    def publish(self, final: bool = False) -> None:
        """Publish the scores that are ready."""
        self.publish_scores(*self.decoding.scores(final))

    def publish_scores(self, scores: list[Score], reliability: float) -> None:
        """Publish scores."""
        for score in scores:
            with self.scores.reserve(timeout_s=30) as out:
                out["generation"], out["candidate"] = score.key
                for name in ("revision", "volumes_used", "score", "score_se", "onset_s"):
                    out[name] = getattr(score, name)
                out["reliability"] = reliability
                out["closed_ns"] = self.closed_ns.get(score.last_volume_index, 0)
                out["scored_ns"] = time.monotonic_ns()


def decode(context: Context) -> None:
    """``volumes`` and ``events`` -> ``aligned`` and ``scores``."""
    work, pulses = _Decode(context), Reconcile(context)

    def event(slot: Any) -> None:
        pulses.event(slot)
        work.event(slot)

    def volume(slot: Any) -> None:
        work.volume(slot)
        pulses.volume(slot)

    inputs = {"events": context.reader("events"), "volumes": context.reader("volumes")}
    context.ready()
    while inputs and not context.clock.get("abort"):
        if "volumes" in serve(inputs, {"events": event, "volumes": volume}, WAIT_S):
            pulses.finish()
            work.publish(final=True)
            work.scores.close_writing()
            work.aligned.close_writing()
