"""The page's access to the session: the log, the shared words, the rings' depths, a pipe to the supervisor."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rtevo.console.maps import LiveMaps
from rtevo.console.view import View
from rtevo.console.waits import OVER, how_it_ended, state_of
from rtevo.errors import DecoderError
from rtevo.record import LOG, LogFollower, image_path
from rtevo.session.course import course_settings
from rtevo.session.orders import SAID, choices_of
from rtevo.shm import Ring

if TYPE_CHECKING:
    from rtevo.session.context import Context

__all__ = ["Desk"]

THUMBNAIL_PX = 256


class Desk:
    """One session, watched. It reads the session's log, so that it has no part in any ring.

    Parameters
    ----------
    context : Context
        Of the console's process.
    """

    def __init__(self, context: Context) -> None:
        from rtevo.session.rings import readers_of, ring_name, ring_names

        self.context, self.plan, self.clock = context, context.plan, context.clock
        self.view = View(self.plan.config, self.plan.tr_s)
        self.images = len(self.plan.trials) or course_settings(self.plan.config).images
        self.depths: dict[str, tuple[int, int]] = {}  # of each ring: waiting, places
        self.changed = 0  # grows with every record
        self._log = LogFollower(self.plan.out / LOG)
        self._rings = {name: Ring.attach(ring_name(self.plan.name, name)) for name in ring_names(self.plan)}
        self._readers = {name: readers_of(name, self.plan.devices, self.plan.localizer) for name in self._rings}
        self._thumbnails: dict[tuple[int, int], bytes] = {}
        self.maps = self._make_maps()

    def _make_maps(self) -> LiveMaps:
        """Make the live maps, of the decoder as it was made; where it is no longer there, of the volumes alone."""
        from rtevo.decode import load_decoder

        settings, kind = self.plan.config.decoder, self.plan.config.record.save_volumes
        decoder = None
        if kind != "none" and not self.view.localizer:
            with suppress(DecoderError):
                decoder = load_decoder(self.plan.decoder, self.plan.decoder_name, settings.objective, settings.more_folders)
        return LiveMaps(self.plan.out, kind, decoder, self.plan.tr_s, self.view.blinded)

    def close(self) -> None:
        """Release the rings."""
        for ring in self._rings.values():
            ring.close()

    def refresh(self) -> None:
        """Read the new records."""
        for record in self._log.new():
            self.changed += 1
            self.view.take(record)
            self.maps.take(record)
        self.depths = {name: (max(map(ring.lag, self._readers[name])), ring.slots) for name, ring in self._rings.items()}

    @property
    def state(self) -> str:
        """The session's state, see :func:`rtevo.console.waits.state_of`."""
        return state_of(self.clock.get, self.view)

    @property
    def acceptable(self) -> bool:
        """Whether a placement waits that the operator may accept."""
        asked = self.view.asked
        may = self.plan.config.decoder.doubtful == "wait"
        return may and self.state == "asked" and asked is not None and asked.verdict == "doubtful"

    @property
    def admittable(self) -> bool:
        """Whether another presenter waits to be let in."""
        return bool(self.clock.get("presenter_waits")) and not self.over

    @property
    def correctable(self) -> int:
        """Repetition times by which the trigger was too late, while that can be corrected; 0 otherwise."""
        return 0 if self.over else self.clock.get("start_shift")

    @property
    def over(self) -> bool:
        """Whether the session has ended."""
        return self.state in (*OVER[1:], "failed", "between", "following")

    @property
    def ended(self) -> str:
        """The way in which the session has ended, see :func:`rtevo.console.waits.how_it_ended`."""
        return how_it_ended(self.clock.get)

    @property
    def between(self) -> bool:
        """Whether the stimulus PC is there between two runs of a visit."""
        return bool(self.clock.get("between"))

    @property
    def said(self) -> list[str]:
        """Information for the operator between two runs of a visit."""
        try:
            return (self.plan.runtime / SAID).read_text(encoding="utf-8").splitlines()
        except OSError:  # nothing
            return []

    @property
    def offered(self) -> tuple[str, ...]:
        """The choices after this run of a visit, if the operator is asked; see :data:`rtevo.session.orders.CHOICES`."""
        return choices_of(self.clock.get("offered"))

    @property
    def closed(self) -> bool:
        """Whether nothing more can come: the session is over, and in a visit it is known what follows."""
        return self.over and (self.plan.visit is None or bool(self.clock.get("parted")))

    @property
    def ends(self) -> bool:
        """Whether this is the end, and no other run follows at this address."""
        return self.closed and self.state != "following"

    def act(self, action: str, text: str = "", t_ns: int | None = None) -> None:
        """Send the operator's actions to the supervisor.

        Parameters
        ----------
        action : {"start", "pause", "go_on", "stop", "mark", "seen", "accept", "again", "restart", "admit", "correct", "show", "veto",
            "away", "next_run", "same_again", "resume_run", "end_visit"}
        text : str
            A note; of the last three the picture's name (`rtevo.records.named`).
        t_ns : int, optional
            Session time that is meant; now if None.
        """
        self.context.tell("operator", action=action, text=text, t_ns=self.clock.now_ns() if t_ns is None else t_ns)

    def ago_ns(self, ms: float) -> int:
        """Return the session time of so many (real) milliseconds ago; 0 before its start."""
        return max(0, self.clock.now_ns() - round(ms * 1e6 * self.clock.speed))

    def overlay(self, part: int, attempt: int) -> bytes | None:
        """Return the picture of an attempt to place the decoder, as a PNG file; None if there is none."""
        from rtevo.report.overlay import draw_attempt

        path = draw_attempt(self.plan.out, self.plan.decoder, self.plan.decoder_name, part, attempt)
        return None if path is None else path.read_bytes()

    def picture(self, generation: int, candidate: int, *, small: bool) -> bytes | None:
        """Return a painted picture, as a PNG file; None if there is none."""
        path = image_path(self.plan.out, generation, candidate)
        key = (generation, candidate)
        if key not in self.view.trials or not self.view.trials[key].painted:
            return None
        if not small:
            return path.read_bytes()
        if key not in self._thumbnails:
            self._thumbnails[key] = _thumbnail(path)
        return self._thumbnails[key]


def _thumbnail(path: Path) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()
