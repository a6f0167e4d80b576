"""The support computer's end of the link to the stimulus PC; the only user of ZeroMQ in rtevo.

One thread uses a :class:`Bridge`, and calls :meth:`Bridge.poll` repeatedly; nothing happens between the calls. Images and commands go out,
events come back with their time mapped to this computer's monotonic clock. Messages in both directions are numbered and acknowledged, so
that a cut of the network neither loses nor doubles any. Events are acknowledged at the caller's next poll, when it has handled them.

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
