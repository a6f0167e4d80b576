"""``volumes`` and ``events`` -> ``aligned`` and ``scores``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rtevo.records import EventKind, VolumeFlag
from rtevo.stages.context import WAIT_S, Context, serve
from rtevo.stages.reconcile import Reconcile

if TYPE_CHECKING:
    from rtevo.decode import Method
    from rtevo.decode.hrf import Shape
    from rtevo.decode.nuisance import Drift


class _Decode:
    """State of the decode stage between volumes."""

    def __init__(self, context: Context) -> None:
        from rtevo.decode import Decoder, Quality, Scorer
        from rtevo.realign import Realigner, warm_up

        plan, settings = context.plan, context.config.decoder
        warm_up()
        decoder = Decoder.load(plan.decoder, plan.decoder_name)
        self.realigner = Realigner(decoder.reference, plan.grid.affine, threads=settings.threads)

        def scorer() -> Any:
            return Scorer(
                decoder,
                plan.tr_s,
                method=cast("Method", settings.method),
                fwhm_mm=settings.fwhm_mm,
                duration_s=context.config.presentation.image_s,
                first_s=settings.first_score_s,
                motion_terms=settings.motion_terms,
                drift=cast("Drift", settings.drift),
                spike_mm=settings.spike_mm,
                hrf=cast("Shape", settings.hrf),
                delay_s=settings.delay_s,
                half_window_tr=settings.half_window_tr,
            )

        self._warm(scorer(), decoder, settings.threads)
        self.scorer = scorer()
        self.context, self.decoder, self.quality, self.compared = context, decoder, Quality(decoder), False
        self.holes = False
        self.aligned, self.scores = context.writer("aligned"), context.writer("scores")
        self.save = context.config.record.save_volumes in ("aligned", "both")
        self.trigger_ns: int | None = None
        self.closed_ns: dict[int, int] = {}
        self.previous: Any = None

    def _warm(self, scorer: Any, decoder: Any, threads: int) -> None:
        """Do everything once, with a realigner of its own: the session's starts from where the head lay last."""
        from rtevo.realign import Realigner

        with Realigner(decoder.reference, decoder.grid.affine, threads=threads) as realigner:
            motion, volume = realigner.align(decoder.reference)
            scorer.add_volume(0, volume, motion.params)

    def event(self, slot: Any) -> None:
        """Take note of the trigger and of onsets."""
        if slot["kind"] == EventKind.TRIGGER and self.trigger_ns is None:
            self.trigger_ns = int(slot["t_ns"])
        elif slot["kind"] == EventKind.ONSET and self.trigger_ns is not None:
            key = (int(slot["generation"]), int(slot["candidate"]))
            self.scorer.add_onset(key, (int(slot["t_ns"]) - self.trigger_ns) / 1e9)

    def volume(self, slot: Any) -> None:
        """Align one volume, publish its motion, and the scores that it completes."""
        from rtevo.realign import framewise_displacement

        index, flags, motion = int(slot["index"]), int(slot["flags"]), np.full(6, np.nan)
        data = None
        if not flags & VolumeFlag.MISSING:
            estimate = self.realigner.estimate(slot["data"])
            if estimate.converged:
                motion = np.asarray(estimate.params, np.float64)
                data = self.realigner.reslice(slot["data"], estimate) if self.whole(slot["data"]) else None
            else:
                flags |= VolumeFlag.UNALIGNED
        displacement = np.nan
        if data is not None:
            if self.previous is not None:
                displacement = float(framewise_displacement(np.stack([self.previous, motion]))[1])
            self.previous = motion
        if displacement > self.context.config.decoder.spike_mm:
            flags |= VolumeFlag.SPIKE
        dvars, tsnr = self.quality.add(data)
        if data is not None and not self.compared:
            self.compare(motion)
        aligned_ns = time.monotonic_ns()
        self.closed_ns[index] = int(slot["closed_ns"])
        with self.aligned.reserve(timeout_s=30) as out:
            for name in ("index", "acquired_s", "closed_ns", "ingested_ns"):
                out[name] = slot[name]
            out["flags"], out["motion"], out["framewise_displacement_mm"], out["aligned_ns"] = flags, motion, displacement, aligned_ns
            out["dvars_percent"], out["tsnr"] = dvars, tsnr
            if self.save:
                out["data"][...] = slot["data"] if data is None else data
        self.scorer.add_volume(index, data, motion)
        self.publish()

    def whole(self, volume: Any) -> bool:
        """Whether a volume can be scored; tell where it is the first that cannot."""
        from rtevo.decode import whole

        usable = whole(volume, self.decoder.mask)
        if not usable and not self.holes:
            self.holes = True
            self.context.log.warning("decode: volumes with numbers in the decoder's mask that are not finite are left out")
        return usable

    def compare(self, motion: Any) -> None:
        """Warn where the run is not like the decoder's."""
        from rtevo.decode import differences

        self.compared = True
        plan, fwhm_mm = self.context.plan, self.context.config.decoder.fwhm_mm
        for difference in differences(self.decoder, plan.tr_s, fwhm_mm, self.quality.gain(), motion):
            self.context.log.warning("decode: %s", difference)

    def publish(self, final: bool = False) -> None:
        """Publish the scores that are ready."""
        scores = self.scorer.ready(final=final)
        reliability = self.scorer.reliability() if scores else np.nan
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
