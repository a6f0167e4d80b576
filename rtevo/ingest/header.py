"""What a DICOM header says about the series that a file belongs to, and whether that looks like functional imaging."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.ingest.csa import protocol_number
from rtevo.ingest.elements import Elements
from rtevo.ingest.encoding import acceleration_of_slices, encoding, ge_interleaved
from rtevo.outside import shown

__all__ = ["Likeness", "SeriesHeader", "moment", "series_header"]

NOT_FUNCTIONAL_TYPES = frozenset(("LOCALIZER", "DIFFUSION", "ADC", "FA", "TRACEW", "TENSOR", "MPR", "PERFUSION", "ASL", "T1 MAP", "T2 MAP"))
NOT_FUNCTIONAL_WORDS = (
    "sbref",
    "localizer",
    "localiser",
    "scout",
    "survey",
    "phoenixzipreport",
    "aahead",
    "fieldmap",
    "field_map",
    "physiolog",
    "physio_log",
)
PERFUSION = re.compile(r"(?<![a-z])(?:[23]d)?(?:v[es]|[pqf]|pc|c)?asl(?![a-z])|perfusion|(?<![a-z])tgse")  # arterial spin labelling
PROCESSED_TYPES, PROCESSED_WORDS = frozenset(("MOCO", "SUBTRACTION", "PHYSIO")), ("moco",)
DIFFUSION_SEQUENCE = re.compile(r"\bep_b\d")  # Siemens': *ep_b0, ep_b1000#12
LONGEST_TR_S = 20.0
SHORTEST_TR_S = 0.2


class Likeness(IntEnum):
    """How much a stream of pictures looks like the functional run of a session."""

    FUNCTIONAL = 0  # echo-planar, original, more than one volume, first echo, magnitude
    POSSIBLE = 1  # taken where nothing better comes
    UNLIKELY = 2  # never taken unless it is asked for


@dataclass(frozen=True)
class SeriesHeader:
    """One series of a session, as one of its files describes it.

    Parameters
    ----------
    uid, study_uid : str
        Identifiers.
    number : int or None
        Series number.
    description, protocol : str
        Series description and protocol name.
    vendor, model : str
        ``"Siemens"``, ``"Philips"``, ``"GE"``, or the manufacturer as written; model name.
    kind : str
        ``"mosaic"``, ``"slices"`` (one file each), ``"enhanced"`` (multi-frame), ``"nifti"``, or ``"pushed"`` by a script.
    image_type : tuple of str
        (0008,0008).
    sequence : str
        Name of the pulse sequence.
    echo_planar, spin_echo : bool
        Kind of read-out and of echo.
    modality : str
        ``"MR"`` for what this software is for.
    tr_s : float or None
        Repetition time in seconds.
    volumes : int or None
        Number of volumes that the header announces.
    slices : int or None
        Number of slices of a volume that the header announces.
    b_value : float
        Diffusion weighting in s/mm2.
    flip_deg, field_t : float
        Flip angle in degrees, field strength in tesla; 0 where the header has none.
    spin_labelled : bool
        Whether the header says that arterial spins were labelled.
    delay_s : float
        Pause after every volume in seconds, which `tr_s` includes; only where it is known apart from that.
    interleaved : bool or None
        Whether every other slice is acquired first; None where nothing but the slices' times say it.
    encoding : mapping
        See :func:`rtevo.ingest.encoding.encoding`.
    patient_id, study_date : str
        Who and on what day (YYYYMMDD), as was registered at the scanner; empty where the header has none. They are compared, not recorded.
    """

    uid: str
    study_uid: str
    number: int | None
    description: str
    protocol: str
    vendor: str
    model: str
    kind: str
    image_type: tuple[str, ...]
    sequence: str
    echo_planar: bool
    spin_echo: bool
    modality: str
    tr_s: float | None
    volumes: int | None
    slices: int | None
    b_value: float
    flip_deg: float = 0.0
    field_t: float = 0.0
    spin_labelled: bool = False
    delay_s: float = 0.0
    interleaved: bool | None = None
    encoding: Mapping[str, Any] = field(default_factory=dict, compare=False)
    patient_id: str = field(default="", compare=False, repr=False)
    study_date: str = field(default="", compare=False, repr=False)

    def sidecar(self, te_ms: float = 0.0, slice_times_s: NDArray[np.float64] | None = None) -> dict[str, Any]:
        """Return a run's header information under the names of BIDS (Brain Imaging Data Structure 1.10, MRI).

        Parameters
        ----------
        te_ms : float
            Echo time; 0 where unknown.
        slice_times_s : ndarray, float64 (Z,), optional
            When each slice was acquired, from the volume's start, seconds.
        """
        found: dict[str, Any] = {
            "Manufacturer": "" if self.vendor in ("unknown", "script") else self.vendor,
            "ManufacturersModelName": self.model,
            "SeriesDescription": self.description,
            "ProtocolName": self.protocol,
            "PulseSequenceType": "Spin Echo EPI" if self.spin_echo else "Gradient Echo EPI" if self.echo_planar else "",
            "SequenceName": self.sequence,
            "EchoTime": round(te_ms / 1000, 6),
            "FlipAngle": self.flip_deg,
            "MagneticFieldStrength": self.field_t,
            **self.encoding,
        }
        if slice_times_s is not None and np.isfinite(slice_times_s).all() and slice_times_s.max() > 0:
            found["SliceTiming"] = [round(float(t), 6) for t in slice_times_s]
            found["SliceEncodingDirection"] = "k"  # times are those of the volume's planes, in their order
            if (several := acceleration_of_slices(slice_times_s)) > 1:
                found.setdefault("MultibandAccelerationFactor", several)
        return {name: value for name, value in found.items() if value}

    @property
    def label(self) -> str:
        """Number and description, for messages."""
        return f"series {'?' if self.number is None else self.number} '{shown(self.description or self.protocol)}'"

    def made_beside(self, pattern: str = "") -> str:
        """Return why a series is one that scanners make beside or from a run, under its name; empty if it is not.

        Parameters
        ----------
        pattern : str
            What was asked for: a word in it is no reason.
        """
        description, types = f"{self.description} {self.protocol}".lower(), {word.upper() for word in self.image_type}
        words = [w for w in (*NOT_FUNCTIONAL_WORDS, *PROCESSED_WORDS) if w in description]
        named = any(w in pattern.lower() for w in words)
        reasons = (
            (self.modality != "MR", f"modality {self.modality or 'not given'}"),
            (bool(words) and not named, f"'{'; '.join(words)}' in its name"),
            (bool(types & NOT_FUNCTIONAL_TYPES), f"image type {'/'.join(sorted(types & NOT_FUNCTIONAL_TYPES))}"),
            (bool(self.image_type) and self.image_type[0].upper() == "DERIVED", "derived pictures"),
            (bool(types & PROCESSED_TYPES) and not named, "processed by the scanner"),
            (self.b_value > 0 or DIFFUSION_SEQUENCE.search(self.sequence.lower()) is not None, "diffusion-weighted"),
        )
        return next((why for holds, why in reasons if holds), "")

    def likeness(self, component: str = "M", echo: int = 1) -> tuple[Likeness, str]:
        """How much a stream of this series looks like functional imaging, and why.

        Parameters
        ----------
        component : str
            ``"M"`` magnitude, ``"P"`` phase, ``"R"``, ``"I"`` real and imaginary part.
        echo : int
            Number of the echo, 1 = first.
        """
        description = f"{self.description} {self.protocol}".lower()
        types = {word.upper() for word in self.image_type}
        word = next((w for w in NOT_FUNCTIONAL_WORDS if w in description), "")
        unlikely = (
            (self.modality != "MR", f"modality {self.modality or 'not given'}"),
            (component != "M", "not magnitude"),
            (bool(word), f"'{word}' in its name"),
            (bool(types & NOT_FUNCTIONAL_TYPES), f"image type {'/'.join(sorted(types & NOT_FUNCTIONAL_TYPES))}"),
            (bool(self.image_type) and self.image_type[0].upper() == "DERIVED", "derived pictures"),
            (self.b_value > 0, "diffusion-weighted"),
            (self.spin_labelled or PERFUSION.search(f"{description} {self.sequence.lower()}") is not None, "arterial spin labelling"),
            (DIFFUSION_SEQUENCE.search(self.sequence.lower()) is not None, "a diffusion sequence"),
        )
        for holds, why in unlikely:
            if holds:
                return Likeness.UNLIKELY, why
        possible = (
            (not self.echo_planar, "not echo-planar"),
            (self.spin_echo, "spin echo"),
            (self.kind != "nifti" and self.tr_s is None, "no repetition time"),
            (self.tr_s is not None and not SHORTEST_TR_S <= self.tr_s <= LONGEST_TR_S, "repetition time"),
            (echo > 1, f"echo {echo}"),
            (self.volumes == 1, "one volume announced"),
            (bool(types & PROCESSED_TYPES) or any(w in description for w in PROCESSED_WORDS), "processed by the scanner"),
        )
        for holds, why in possible:
            if holds:
                return Likeness.POSSIBLE, why
        return Likeness.FUNCTIONAL, "echo-planar series"


def _vendor(manufacturer: str) -> str:
    upper = manufacturer.upper()
    for word, vendor in (("SIEMENS", "Siemens"), ("PHILIPS", "Philips"), ("GE ", "GE"), ("GEMS", "GE")):
        if word in f"{upper} ":
            return vendor
    return manufacturer or "unknown"


def _positive(elements: Elements, *tags: int) -> int | None:
    """The first of these elements that holds a number above zero."""
    for tag in tags:
        number = elements.integer(tag) if tag else None
        if number is not None and number > 0:
            return number
    return None


def _slices(elements: Elements, vendor: str, volumes: int | None) -> int | None:
    """Slices of a volume that a one-file-per-slice header announces."""
    if vendor == "Philips":
        found = _positive(elements, elements.private(0x2001, "Philips Imaging DD 001", 0x18))
    elif vendor == "GE":
        found = _positive(elements, elements.private(0x21, "GEMS_RELA_01", 0x4F), elements.private(0x43, "GEMS_PARM_01", 0x79))
    else:
        found = None
    if found is None and volumes and vendor != "Siemens":
        images = _positive(elements, 0x00201002)  # images in acquisition: of one volume, or of all
        if images and images % volumes == 0 and images > volumes:
            return images // volumes
    return found


def _b_value(elements: Elements, vendor: str, shared: Elements | None) -> float:
    """Diffusion weighting in s/mm2, where older headers have it in private elements only; 1 where no more is said than that there is some.

    Of a series whose first volume is not weighted, vendors say how many weightings or directions there are.
    """
    group = shared.first(0x00189117) if shared else None
    for source in (elements, group):
        if source and (value := source.number(0x00189087)):
            return value
    if vendor == "Siemens":
        return elements.number(elements.private(0x19, "SIEMENS MR HEADER", 0x0C)) or 0.0
    if vendor == "Philips":
        several = (elements.integer(elements.private(0x2005, "Philips MR Imaging DD 002", tag)) or 0 for tag in (0x14, 0x15))
        return elements.number(elements.private(0x2001, "Philips Imaging DD 001", 0x03)) or float(max(several) > 1)
    if vendor == "GE":
        return next(iter(elements.numbers(elements.private(0x43, "GEMS_PARM_01", 0x39))), 0.0) % 1e5  # 1e9 may be added to it
    return 0.0


def _echo_planar(elements: Elements, vendor: str, image_type: tuple[str, ...], sequence: str) -> bool:
    if {"MOSAIC", "FMRI", "EPI"} & {word.upper() for word in image_type}:
        return True
    if "EP" in elements.words(0x00180020) or elements.text(0x00189018) == "YES":
        return True
    if vendor == "Philips":
        return (_positive(elements, elements.private(0x2001, "Philips Imaging DD 001", 0x13)) or 1) > 1
    return sequence.lower().lstrip("*").startswith(("ep", "gre_epi"))


def series_header(elements: Elements, kind: str, picture: tuple[int, int], shared: Elements | None = None) -> SeriesHeader:
    """Describe the series that a file belongs to.

    Parameters
    ----------
    elements : Elements
        The file's data set.
    kind : str
        ``"mosaic"``, ``"slices"`` or ``"enhanced"``.
    picture : tuple of int
        Rows and columns of a slice.
    shared : Elements, optional
        Shared functional groups of a multi-frame file.
    """
    vendor = _vendor(elements.text(0x00080070))
    image_type = elements.words(0x00080008)
    sequence = elements.text(0x00180024) or elements.text(0x00189005) or elements.text(elements.private(0x19, "GEMS_ACQU_01", 0x9C))
    volumes = _positive(elements, 0x00200105, elements.private(0x2001, "Philips Imaging DD 001", 0x81))
    if vendor == "Siemens" and volumes is None:
        repetitions = protocol_number(elements.raw(elements.private(0x29, "SIEMENS CSA HEADER", 0x20)), "lRepetitions")
        volumes = int(repetitions) + 1 if repetitions is not None and 0 <= repetitions < 1e6 else None
    timing, converted = (shared.first(tag) if shared else None for tag in (0x00189112, 0x00209170))  # of files converted to multi-frame
    tr_ms = next((tr for source in (timing, elements, converted) if source and (tr := source.number(0x00180080))), None)
    delay_s = elements.number(elements.private(0x43, "GEMS_PARM_01", 0x7C)) if vendor == "GE" else None
    delay_s = delay_s if tr_ms and delay_s and 0 < delay_s < LONGEST_TR_S else 0.0
    tr_ms = tr_ms + 1000 * delay_s if tr_ms else tr_ms  # a pause after every volume, which GE does not count
    return SeriesHeader(
        uid=elements.text(0x0020000E),
        study_uid=elements.text(0x0020000D),
        number=elements.integer(0x00200011),
        description=elements.text(0x0008103E),
        protocol=elements.text(0x00181030),
        vendor=vendor,
        model=elements.text(0x00081090),
        kind=kind,
        image_type=image_type,
        sequence=sequence,
        echo_planar=_echo_planar(elements, vendor, image_type, sequence) or (converted is not None and "EP" in converted.words(0x00180020)),
        spin_echo="SE" in (converted or elements).words(0x00180020) or elements.text(0x00189008) == "SPIN",
        modality=elements.text(0x00080060),
        tr_s=tr_ms / 1000 if tr_ms and math.isfinite(tr_ms) and tr_ms > 0 else None,
        volumes=volumes,
        slices=_slices(elements, vendor, volumes) if kind == "slices" else None,
        b_value=_b_value(elements, vendor, shared),
        flip_deg=next((angle for source in (timing, elements) if source and (angle := source.number(0x00181314))), 0.0),
        field_t=elements.number(0x00180087) or 0.0,
        delay_s=delay_s,
        interleaved=ge_interleaved(elements) if vendor == "GE" and 0x00181060 not in elements else None,
        encoding=encoding(elements, vendor, picture),
        patient_id=elements.text(0x00100020),
        study_date=elements.text(0x00080020),
        spin_labelled=0x00189251 in elements or bool(elements.text(0x00189250)) or bool(shared and 0x00189251 in shared),
    )


def moment(date: str, time: str = "") -> float:
    """A DICOM date and time, or date-time, as seconds from a fixed day; NaN where it is none.

    Parameters
    ----------
    date : str
        ``YYYYMMDD``, or ``YYYYMMDDHHMMSS.FFFFFF`` with `time` empty.
    time : str
        ``HHMMSS.FFFFFF``; parts from the right may be missing.
    """
    if not time:
        date, time = date[:8], date[8:]
    time = time.replace(":", "").split("+")[0].split("-")[0].strip()
    try:
        day = datetime.date(int(date[:4]), int(date[4:6]), int(date[6:8])).toordinal() if date.strip() else 0
        return 86400.0 * day + 3600 * int(time[:2]) + 60 * int(time[2:4] or 0) + float(time[4:] or 0)
    except ValueError:
        return math.nan
