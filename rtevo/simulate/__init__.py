"""Simulated participant and scanner: sees only the pictures that were shown, writes only DICOM files.

Stages and supervisor use three things: :class:`Simulation` (who is scanned and how), :func:`make_decoder` (a localizer run of the same
participant, which gives the session's decoder) and :func:`run_scanner` (the session's scanner, with the participant in it). A replayed
series needs only :class:`Room`: somebody who looks at the screen and presses the trigger. :class:`FaultyWriter` and :func:`deliver`
let deliveries go wrong, to rehearse that, and :class:`FaultyNetwork` the link to the stimulus PC.
"""

from rtevo.simulate.concept import concepts
from rtevo.simulate.faults import Delivery, Faults, FaultyWriter, deliver
from rtevo.simulate.head import scan_grid
from rtevo.simulate.localizer import SimulatedDecoder, make_decoder
from rtevo.simulate.network import FaultyNetwork
from rtevo.simulate.participant import ParticipantLink, Preference
from rtevo.simulate.scanner import Simulation
from rtevo.simulate.session import RealTime, Room, SessionTime, VolumeWriter, run_scanner

__all__ = [
    "Delivery",
    "Faults",
    "FaultyNetwork",
    "FaultyWriter",
    "ParticipantLink",
    "Preference",
    "RealTime",
    "Room",
    "SessionTime",
    "SimulatedDecoder",
    "Simulation",
    "VolumeWriter",
    "concepts",
    "deliver",
    "make_decoder",
    "run_scanner",
    "scan_grid",
]
