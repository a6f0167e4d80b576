"""The support computer's end of the link to the stimulus PC; the only user of ZeroMQ in rtevo.

A :class:`Bridge` is used by one thread, which calls :meth:`Bridge.poll` again and again; nothing happens between the calls. Images and
commands go out, events come back with their time mapped to this computer's monotonic clock. Both directions are numbered and
acknowledged, so that a cut of the network loses and doubles nothing; events are acknowledged when the caller comes back for more, that
is, once it has dealt with them.

Beyond loopback the link is encrypted and both ends are authenticated (CURVE). ``python -m rtevo.bridge keys DIR`` makes the keys.
"""

from __future__ import annotations

from rtevo.bridge.bridge import Bridge
from rtevo.bridge.events import Predecessor, PresenterEvent
from rtevo.bridge.keys import make_keys
from rtevo.bridge.lobby import Lobby
from rtevo.bridge.offset import ClockOffset
from rtevo.bridge.physiology import Physiology

__all__ = ["Bridge", "ClockOffset", "Lobby", "Physiology", "Predecessor", "PresenterEvent", "make_keys"]
