"""A simulated participant: watches the screen, responds with blood flow and with button presses.

The participant knows nothing of generations, candidates or decoders: it sees pixels and the time at which they appeared. What it
prefers is hidden behind :class:`Preference`; :class:`ColourPreference` is a smooth function of a picture's colours and their layout. The
preference drives two things: the amplitude of a haemodynamic response, and the ratings.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import zmq
from numpy.typing import NDArray
from scipy import special
from zmq.utils.monitor import parse_monitor_message

from rtevo.errors import LinkError
from rtevo.simulate.refractory import Refractory
from rtevo.wire import Key, KeyFile, Message, Seen, Shown, WireError, decode, encode, is_loopback

__all__ = [
    "Behaviour",
    "ColourPreference",
    "Participant",
    "ParticipantLink",
    "Preference",
    "Viewing",
    "Vigilance",
    "boxcar_response",
    "haemodynamic_integral",
    "haemodynamic_response",
]

_REFUSED = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_log = logging.getLogger("rtevo")

Pixels = NDArray[np.uint8]
Times = NDArray[np.float64]

# SPM12 spm_hrf.m, default parameters p = [6 16 1 1 6 0 32]: gamma densities of response and undershoot with these shapes (dispersion 1 s)
# and this ratio of their areas. Friston et al. (1998), NeuroImage 7:30-40, doi:10.1006/nimg.1997.0306; Glover (1999),
# NeuroImage 9:416-429, doi:10.1006/nimg.1998.0419. SPM cuts it at 32 s, where less than 0.05% of it is left.
_PEAK_SHAPE, _UNDERSHOOT_SHAPE, _UNDERSHOOT_RATIO = 6.0, 16.0, 1 / 6
_FORGET_S = 45.0  # a picture that went so long ago no longer matters
REFERENCE_S = 3.0  # amplitudes are those of the peak response to a picture of this duration


def haemodynamic_response(t_s: Times) -> Times:
    """Return SPM's double-gamma response to an impulse, area 1 before the undershoot is subtracted.

    Parameters
    ----------
    t_s : ndarray, float64 (n,)
        Seconds after the impulse; the response is 0 before it.

    Returns
    -------
    ndarray, float64 (n,)
        Per second.
    """
    t = np.maximum(np.asarray(t_s, np.float64), 0.0)
    peak = t ** (_PEAK_SHAPE - 1) * np.exp(-t) / special.gamma(_PEAK_SHAPE)
    undershoot = t ** (_UNDERSHOOT_SHAPE - 1) * np.exp(-t) / special.gamma(_UNDERSHOOT_SHAPE)
    return np.asarray(peak - _UNDERSHOOT_RATIO * undershoot, np.float64)


def haemodynamic_integral(t_s: Times) -> Times:
    """Return the integral of :func:`haemodynamic_response` from 0 to `t_s`, in closed form (incomplete gamma functions).

    A picture that is on the screen from ``a`` to ``b`` causes ``integral(t - a) - integral(t - b)``: its boxcar, convolved.
    """
    t = np.maximum(np.asarray(t_s, np.float64), 0.0)
    return np.asarray(special.gammainc(_PEAK_SHAPE, t) - _UNDERSHOOT_RATIO * special.gammainc(_UNDERSHOOT_SHAPE, t), np.float64)


def _reference_peak() -> float:
    t_s = np.arange(0.0, 20.0, 0.001, dtype=np.float64)
    return float((haemodynamic_integral(t_s) - haemodynamic_integral(t_s - REFERENCE_S)).max())


_PEAK = _reference_peak()


class Preference(Protocol):
    """A participant's preference, hidden from decoder and evolution."""

    def __call__(self, pixels: Pixels) -> float:
        """Return how much a picture, uint8 (H, W, 3) RGB with row 0 at the top, is liked: about N(0, 1) over random pictures."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return the description, JSON-able, for the log of the hidden truth."""
        ...


# ColourPreference.features over 256 pictures that the built-in generator paints from random latents. Standard deviation of lightness,
# red-green, yellow-blue (rows) by order of the cosine (0, 1, 2 or more); means of all, in the order of the features.
_FEATURE_SD = np.array([[0.087, 0.017, 0.023], [0.074, 0.021, 0.019], [0.106, 0.022, 0.025]])
_FEATURE_MEAN = np.zeros((3, 3, 3))
_FEATURE_MEAN[::2, ::2] = [[[0.789, 0.069, 0.078], [0.075, -0.030, -0.036]], [[0.071, -0.023, -0.029], [-0.017, 0.008, 0.011]]]


class ColourPreference:
    """Likes certain colours in certain places: a smooth function of a picture's coarse layout.

    A picture is turned into lightness, red-green and yellow-blue; each is described by its lowest 3 x 3 cosine coefficients, so that
    only gradual changes over the picture count and the number of pixels does not. The preference is a weighted sum of these 27 features,
    standardised to about mean 0 and standard deviation 1 over pictures of the built-in generator. The weights are random; colour
    and lightness overall count most, finer layout less. As a function of the pixels it is linear: no picture is a local optimum.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the weights.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        order = np.minimum(np.add.outer(np.arange(3), np.arange(3)), 2)  # of each coefficient
        share = rng.standard_normal((3, 3, 3)) * np.array([1.0, 0.5, 0.2])[order][:, :, None]  # each feature's part of the variance
        share /= np.sqrt((share**2).sum())
        self._weights: NDArray[np.float64] = (share / _FEATURE_SD.T[order]).ravel()

    @staticmethod
    def features(pixels: Pixels) -> NDArray[np.float64]:
        """Describe a picture.

        Parameters
        ----------
        pixels : ndarray, uint8 (H, W, 3)
            RGB.

        Returns
        -------
        ndarray, float64 (27,)
            Cosine coefficients (vertical 3, horizontal 3) of lightness, red-green and yellow-blue, each between -1 and 1.
        """
        height, width, _ = pixels.shape
        down = np.cos(np.outer(np.arange(3), (np.arange(height) + 0.5) * np.pi / height)) / height
        across = np.cos(np.outer(np.arange(3), (np.arange(width) + 0.5) * np.pi / width)) / width
        coarse = np.tensordot(down, pixels.astype(np.float64) / 255, axes=1)  # (3, W, 3)
        coarse = np.tensordot(across, coarse, axes=(1, 1)).transpose(1, 0, 2)  # (3, 3, 3): vertical, horizontal, RGB
        red, green, blue = coarse[..., 0], coarse[..., 1], coarse[..., 2]
        opponent = np.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], axis=-1)
        return np.asarray(opponent.ravel(), np.float64)

    def __call__(self, pixels: Pixels) -> float:
        """Return how much a picture is liked."""
        return float(self._weights @ (self.features(pixels) - _FEATURE_MEAN.ravel()))

    def settings(self) -> dict[str, Any]:
        """Return the preference's description."""
        return {"kind": "colour", "weights": [round(float(w), 6) for w in self._weights]}


@dataclass(frozen=True)
class Viewing:
    """One picture, as the participant saw it.

    Parameters
    ----------
    number : int
        Counted from 0.
    onset_s, offset_s : float
        When it appeared and went, s from the first volume; infinity while it is on the screen.
    preference : float
        How much it was liked.
    amplitude_percent : float
        Peak response of the strongest hidden voxel to this picture for 3 s, percent of its signal.
    pixels_sha256 : str
        First 16 hexadecimal digits, to know the picture by.
    areas_percent : tuple of float
        Peak response of each area's strongest voxel, as `amplitude_percent`.
    """

    number: int
    onset_s: float
    offset_s: float
    preference: float
    amplitude_percent: float
    pixels_sha256: str
    areas_percent: tuple[float, ...] = ()


@dataclass(frozen=True)
class Behaviour:
    """A participant's answers on rating screens.

    The rating is ``round(middle + slope * preference + noise)``, clipped to the keys: monotonic in the preference but for the noise. The
    response time is log-normal, shorter for clear cases.

    Parameters
    ----------
    keys : tuple of str
        Of the lowest to the highest rating.
    slope, noise_sd : float
        Steps of the rating per unit of preference; standard deviation of the noise in steps.
    median_s, spread : float
        Median response time for an undecided case, s; standard deviation of its logarithm.
    missed : float
        Probability of giving no answer.
    """

    keys: tuple[str, ...] = ("1", "2", "3", "4", "6")
    slope: float = 0.8
    noise_sd: float = 0.4
    median_s: float = 1.1
    spread: float = 0.3
    missed: float = 0.02

    def answer(self, preference: float, rng: np.random.Generator) -> tuple[float, str] | None:
        """Return response time (s) and key, or None if the rating is missed. Draws three numbers from `rng` in any case."""
        noise, pace, attention = rng.standard_normal(), rng.standard_normal(), rng.random()
        middle = (len(self.keys) - 1) / 2
        rating = round(min(max(middle + self.slope * preference + self.noise_sd * noise, 0), len(self.keys) - 1))
        clarity = min(abs(preference), 2.0) / 2.0
        response_s = max(self.median_s * (1 - 0.3 * clarity) * math.exp(self.spread * pace), 0.25)
        return None if attention < self.missed else (response_s, self.keys[rating])


DOT = (230, 20, 20)  # the dot that a participant is to detect


@dataclass(frozen=True)
class Vigilance:
    """A participant's answers while pictures of known categories are shown, as instructed.

    Parameters
    ----------
    task : str
        "one-back": a picture that comes again at once; "detection": a red dot on one.
    key : str
        That is pressed.
    median_s, spread : float
        Median response time, s; standard deviation of its logarithm.
    missed, false : float
        Probability that a target is not answered, and that something else is.
    """

    task: str
    key: str = "1"
    median_s: float = 0.55
    spread: float = 0.2
    missed: float = 0.1
    false: float = 0.01

    def answer(self, pixels: Pixels, again: bool, rng: np.random.Generator) -> tuple[float, str] | None:
        """Return response time (s) and key, or None. Draws two numbers from `rng` in any case."""
        attention, pace = rng.random(), rng.standard_normal()
        alike = (np.abs(pixels.astype(np.int16) - DOT) <= 3).all(axis=-1).mean()
        target = again if self.task == "one-back" else alike > 0.005
        answers = attention >= self.missed if target else attention < self.false
        return (max(0.25, self.median_s * math.exp(self.spread * pace)), self.key) if answers else None


class Participant:
    """Looks at pictures; responds.

    Parameters
    ----------
    preference : Preference
        What it likes.
    rng : numpy.random.Generator
        For its answers.
    amplitude_percent : float
        Peak response to a picture whose preference is 1, percent of the signal of a voxel of gain 1.
    behaviour : Behaviour
        How it answers.
    vigilance : Vigilance, optional
        What it answers in a localizer.
    areas : sequence of Preference
        What areas of the brain respond to, each: nothing below 0.
    refractory : Refractory, optional
        What is left of responses to pictures that come fast.

    Attributes
    ----------
    viewings : list of Viewing
        All pictures so far, in order.
    answers : dict of int to (float, str)
        For each rated viewing the response time (s) and the key.
    planned : tuple of (float, str), or None
        When (s from the first volume) the participant is going to press which key.
    """

    def __init__(
        self,
        preference: Preference,
        rng: np.random.Generator,
        amplitude_percent: float = 3.0,
        behaviour: Behaviour | None = None,
        vigilance: Vigilance | None = None,
        areas: Sequence[Preference] = (),
        refractory: Refractory | None = None,
    ) -> None:
        self.preference, self.vigilance, self.areas, self._refractory = preference, vigilance, tuple(areas), refractory
        self.amplitude_percent = amplitude_percent
        self.behaviour = behaviour or Behaviour()
        self.viewings: list[Viewing] = []
        self.answers: dict[int, tuple[float, str]] = {}
        self.planned: tuple[float, str] | None = None
        self._rating_since_s = math.nan
        self._rng = rng
        self._recent: list[Viewing] = []

    def look(self, kind: str, t_s: float, pixels: Pixels | None = None) -> Viewing | None:
        """Process what a flip put on the screen.

        Parameters
        ----------
        kind : str
            "image", "fixation", "rating" or "text".
        t_s : float
            Time of the flip, s from the first volume.
        pixels : ndarray, uint8 (H, W, 3), optional
            The picture, with kind "image".

        Returns
        -------
        Viewing or None
            The picture that has just appeared, if one has.
        """
        if self.vigilance is None:
            self.planned = None
        self._close_viewing(t_s)
        if kind == "rating" and self.viewings:
            answer = self.behaviour.answer(self.viewings[-1].preference, self._rng)
            self._rating_since_s = t_s
            self.planned = None if answer is None else (t_s + answer[0], answer[1])
        if kind != "image" or pixels is None:
            return None
        liked = float(self.preference(pixels))
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        full = self.amplitude_percent * (1.0 if self._refractory is None else self._refractory(t_s, pixels))
        areas = tuple(full * max(0.0, float(area(pixels))) for area in self.areas)
        viewing = Viewing(len(self.viewings), t_s, math.inf, liked, liked * full, digest, areas)
        if self.vigilance is not None:
            again = bool(self.viewings) and self.viewings[-1].pixels_sha256 == digest
            answer = self.vigilance.answer(pixels, again, self._rng)
            self.planned = self.planned if answer is None else (t_s + answer[0], answer[1])
        self.viewings.append(viewing)
        self._recent.append(viewing)
        return viewing

    def _close_viewing(self, t_s: float) -> None:
        if self.viewings and math.isinf(self.viewings[-1].offset_s):
            last = self.viewings[-1]
            self.viewings[-1] = self._recent[-1] = replace(last, offset_s=t_s)

    def pressed(self) -> None:
        """Record that the planned key has been pressed."""
        if self.planned is not None and self.vigilance is None:
            self.answers[self.viewings[-1].number] = (self.planned[0] - self._rating_since_s, self.planned[1])
        self.planned = None

    def response(self, t_s: Times) -> tuple[Times, Times]:
        """Return the haemodynamic response to what has been seen until now.

        Parameters
        ----------
        t_s : ndarray, float64 (n,)
            s from the first volume.

        Returns
        -------
        hidden : ndarray, float64 (n,)
            Driven by the preference: percent of the signal of a voxel of gain 1.
        visual : ndarray, float64 (n,)
            Driven by any picture: 1 at the peak of the response to a picture of 3 s.
        """
        times = np.asarray(t_s, np.float64)
        self._recent = [v for v in self._recent if v.offset_s > float(times.min()) - _FORGET_S]
        return boxcar_response(times, self._recent)

    def area_responses(self, t_s: Times) -> Times:
        """Return the response of each area to what has been seen until now, percent of its signal: float64 (areas, n)."""
        times = np.asarray(t_s, np.float64)
        found = np.zeros((len(self.areas), len(times)))
        for viewing in self._recent if self.areas else ():
            course = haemodynamic_integral(times - viewing.onset_s) - haemodynamic_integral(times - viewing.offset_s)
            found += np.outer(viewing.areas_percent, course / _PEAK)
        return found


def boxcar_response(t_s: Times, viewings: list[Viewing]) -> tuple[Times, Times]:
    """Convolve the pictures' boxcars with the haemodynamic response; see :meth:`Participant.response`."""
    hidden, visual = np.zeros(t_s.shape), np.zeros(t_s.shape)
    for viewing in viewings:
        course = (haemodynamic_integral(t_s - viewing.onset_s) - haemodynamic_integral(t_s - viewing.offset_s)) / _PEAK
        hidden += viewing.amplitude_percent * course
        visual += course
    return hidden, visual


class ParticipantLink:
    """The participant's eyes and fingers: a socket that the headless presenter connects to (see :mod:`rtevo.wire`).

    Parameters
    ----------
    bind : str
        ``ipc://PATH`` or ``tcp://ADDRESS:PORT``; port 0 takes any free one.
    keys : Path, optional
        Key file of the support computer: with it the link is encrypted. Needed for anything but loopback.

    Attributes
    ----------
    endpoint : str
        Where the presenter connects to.
    elsewhere : bool
        The presenter may be on another computer, with a clock of its own.

    Raises
    ------
    LinkError
        If the address cannot be listened on, or may only be with keys.
    """

    def __init__(self, bind: str, keys: Path | None = None) -> None:
        self.elsewhere = not is_loopback(bind)
        if self.elsewhere and keys is None:
            raise LinkError(f"participant link: {bind} can be reached from other computers, which needs keys ([bridge] keys)")
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(sum(_REFUSED))
        self._refused = "it is not encrypted, or its key is of another support computer" if keys else "it is encrypted ([bridge] keys?)"
        self._peer: bytes | None = None
        try:
            if keys is not None:
                own = KeyFile.read(keys, "support")
                self._socket.curve_server = True
                self._socket.curve_publickey, self._socket.curve_secretkey = own.public.encode(), own.secret.encode()
            self._socket.bind(bind[:-2] + ":*" if bind.endswith(":0") else bind)
        except (zmq.ZMQError, WireError) as error:
            self.close()
            raise LinkError(f"participant link: cannot listen on {bind!r}: {error}") from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def close(self) -> None:
        """Close the socket."""
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        self._context.term()

    def __enter__(self) -> ParticipantLink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the presenter has been heard."""
        return self._peer is not None

    def poll(self, longest_s: float) -> bool:
        """Return whether a message waits, after `longest_s` seconds (of real time) at most."""
        return bool(self._socket.poll(math.ceil(max(longest_s, 0) * 1000)))  # whole milliseconds: rounded down, short waits would spin

    def receive(self) -> tuple[Message, Pixels | None] | None:
        """Read one message, with its picture as uint8 (H, W, 3) if it has one; None if none waits."""
        self._look_at_refusals()
        try:
            peer, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        self._peer = peer
        message, raw = decode(frames)
        if raw is None or not isinstance(message, Shown):
            return message, None
        return message, np.frombuffer(raw, np.uint8).reshape(message.height, message.width, 3)

    def _look_at_refusals(self) -> None:
        """Warn once that a presenter was refused."""
        while self._monitor.poll(0):
            parse_monitor_message(self._monitor.recv_multipart())
            if self._refused:
                _log.warning("participant link: a presenter was refused at %s: %s", self.endpoint, self._refused)
            self._refused = ""

    def seen(self, t_ns: int) -> None:
        """Report that the flip at `t_ns` has been processed."""
        self._send(Seen(t_ns))

    def press(self, name: str, t_ns: int = 0) -> None:
        """Press a key; `t_ns`: the session time in lock-step, 0 otherwise."""
        self._send(Key(name, t_ns))

    def _send(self, message: Seen | Key) -> None:
        if self._peer is None:
            raise LinkError(f"participant link: no presenter has connected to {self.endpoint} yet")
        self._socket.send_multipart([self._peer, *encode(message)])
