"""Detection of missing volumes and triggers, by the supervisor from the shared words, so that it works even if a stage hangs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rtevo.session.clock import Clock
from rtevo.session.plan import MEASURED, Plan
from rtevo.session.pulses import Heard

__all__ = ["ALONE_S", "LEAST_S", "Answers", "News", "Silence"]

LEAST_S = 5.0  # shortest silence for an alarm, real time, at any repetition time
UNANSWERED = 5  # this many images in a row without an answer are an alarm
_ANSWERS = {
    "ratings": "rating: check that the participant is awake and well, has the buttons, and that [presentation] rating_keys match them",
    "physiology": "response: check that the sensor is on, its electrodes hold, and its program sends",
}
ALONE_S = 60.0  # of session time: how long an unattended session waits for volumes after an alarm


@dataclass(frozen=True)
class News:
    """A message for the operator.

    Parameters
    ----------
    text : str
    alarm : bool
        A problem begins, and somebody must act; else it is over.
    hold : bool
        Images can no longer be scored.
    """

    text: str
    alarm: bool = True
    hold: bool = False


class Answers:
    """Detects missing answers of the participant, if these judge the images.

    Parameters
    ----------
    condition : str
        One of :data:`rtevo.session.plan.MEASURED`.
    """

    def __init__(self, condition: str) -> None:
        self._words = _ANSWERS[condition]
        self._missed = 0

    def take(self, value: float) -> News | None:
        """Record an image's rating or response, NaN: none; return a message, if any."""
        missed, self._missed = self._missed, self._missed + 1 if math.isnan(value) else 0
        if self._missed == UNANSWERED:
            return News(f"the last {UNANSWERED} images have no {self._words}")
        if missed >= UNANSWERED and not self._missed:
            return News(f"images have answers again, after {missed} without", alarm=False)
        return None


class Silence:
    """Detects missing triggers and volumes.

    Parameters
    ----------
    plan : Plan
    clock : Clock
        Its words are read, not written.

    Attributes
    ----------
    kind : str
        What is missing now; see :meth:`rtevo.session.pulses.Heard.silence`. "series": another series arrives instead.
    since_s : float
        Session time of the alarm.
    """

    def __init__(self, plan: Plan, clock: Clock) -> None:
        self._plan, self._clock = plan, clock
        self._needed = plan.condition not in MEASURED
        self._elsewhere, self._came = "", 0  # series that began after the run's last volume; number of the run's volumes then
        self.kind, self.since_s = "", math.nan

    def elsewhere(self, series: str) -> None:
        """Record that volumes of another series arrive, which began after the run's last volume."""
        self._elsewhere, self._came = series, self._clock.get("volume_count")

    @property
    def heard(self) -> Heard:
        """The scanner's signs in the shared words."""
        get = self._clock.get
        seconds = {name: get(f"{name[:-2]}_ns") / 1e9 or math.nan for name in ("trigger_s", "volume_s", "early_s")}
        return Heard(**seconds, delay_s=get("delay_ns") / 1e9, unusable=get("unusable"))

    @property
    def unheard(self) -> bool:
        """Whether images shown now cannot be scored."""
        return self._needed and self.kind in ("volumes", "series", "usable")

    def look(self, now_s: float) -> News | None:
        """Check for silence; return a message about a change.

        Parameters
        ----------
        now_s : float
            Session time.
        """
        config, heard = self._plan.config, self.heard
        dummies_s = config.presentation.dummy_triggers * self._plan.tr_s if math.isnan(heard.trigger_s) else 0.0
        least_s = LEAST_S * max(1.0, config.session.speed) + dummies_s
        kind = heard.silence(now_s, self._plan.tr_s, least_s)
        if self._clock.get("volume_count") > self._came:  # the run goes on
            self._elsewhere = ""
        if kind == "volumes" and self._elsewhere:
            kind = "series"
        before, self.kind = self.kind, kind
        if kind == before:
            return None
        if not kind:
            return News(f"{_BACK[before]} after {now_s - self.since_s:.0f} s", alarm=False)
        self.since_s = now_s
        hold = self.unheard and bool(self._clock.get("placed"))
        held = " The participant sees fixation until you press Go on." * hold
        return News(self._words(kind, heard, now_s) + held, hold=hold)

    def _words(self, kind: str, heard: Heard, now_s: float) -> str:
        """Return what is missing, since when, and what to do."""
        if kind == "trigger":
            return (
                f"no trigger has come in, although volumes do since {now_s - heard.early_s:.0f} s: check the trigger's cable and box at "
                "the stimulus PC, that its window has the keyboard, and [presentation] trigger_key; then restart the scanner's run"
            )
        if kind == "usable":
            return (
                f"the last {heard.unusable} volumes could not be aligned: check that they show this participant's head (series, field of "
                "view, position); then restart the scanner's run"
            )
        if math.isnan(heard.volume_s):
            text = f"no volume has come in since the trigger, {now_s - heard.trigger_s:.1f} s ago"
        else:
            usual = f", at most {heard.delay_s:.1f} s after their end" if heard.delay_s > 0 else ""
            text = f"no volume has come in for {now_s - heard.volume_s:.1f} s; {self._clock.get('volume_count')} had before{usual}"
        if kind == "series":
            return f"{text}. {self._elsewhere} comes in instead: if the run was restarted, restart it here too (New run), or stop"
        where = {"folder": "[acquisition] folder", "dicom": "[acquisition] port and ae_title", "push": "the script that pushes them"}
        check = where[self._plan.config.acquisition.delivery]
        return f"{text}: check that the scanner still runs and exports; check the network, {check} and series"


_BACK = {
    "trigger": "the trigger has come",
    "volumes": "volumes come in again",
    "series": "volumes come in again",
    "usable": "volumes can be aligned again",
}
