"""How a run's pictures were encoded, in the words of BIDS: direction of phase encoding, echo spacing, acceleration.

The definitions are those of dcm2niix (https://github.com/rordenlab/dcm2niix, README of each vendor), which is what analyses are used to:
effective echo spacing and total read-out time refer to the reconstructed matrix (FSL's definition), and an axis of an image runs against
the rows of the scanner's pictures, so that Siemens' positive column direction is ``j-``.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtevo.ingest.csa import csa_numbers, protocol_number
from rtevo.ingest.elements import Elements

__all__ = ["acceleration_of_slices", "encoding", "ge_interleaved"]

FAT_WATER_PPM = 3.4
MOST = 64  # acceleration factors above this are damaged numbers
LONGEST_SPACING_S = 0.01  # effective echo spacing; more is a damaged number
POLARITY, EPI = 0x0004, 0x0800  # flags of GE's user data
UNFLIPPED = {"LINEAR": False, "REVERSE_LINEAR": True}


def encoding(elements: Elements, vendor: str, picture: tuple[int, int]) -> dict[str, Any]:
    """Return how a file's pictures were encoded.

    Parameters
    ----------
    elements : Elements
        The file's data set.
    vendor : str
        ``"Siemens"``, ``"GE"``, ``"Philips"``, or another's name.
    picture : tuple of int
        Rows and columns of a slice, as reconstructed.

    Returns
    -------
    dict
        What the header says of ``PhaseEncodingDirection`` (or ``PhaseEncodingAxis``, where the polarity is not known),
        ``EffectiveEchoSpacing``, ``TotalReadoutTime`` (s), ``ParallelReductionFactorInPlane``, ``MultibandAccelerationFactor``; for
        Philips ``EstimatedEffectiveEchoSpacing`` and ``EstimatedTotalReadoutTime``.
    """
    shared, frame = elements.first(0x52009229), elements.first(0x52009230)
    sources = [source for source in (frame, shared) if source]
    axis = "" if "3D" in elements.words(0x00180023) else _axis(elements, sources)  # of two directions the header names one
    lines = picture[1] if axis == "i" and picture[0] != picture[1] else picture[0]
    found: dict[str, Any] = {}
    if vendor == "Siemens":
        positive = _siemens(elements, frame, lines, found)
    elif vendor == "GE":
        positive = _ge(elements, axis, lines, found)
    else:
        positive = None
        if vendor == "Philips":
            _philips(elements, lines, found)
    if "ParallelReductionFactorInPlane" not in found:
        factor = _modifier(elements, sources, 0x00189069)
        found["ParallelReductionFactorInPlane"] = factor if factor and 1 <= factor <= MOST else None
    if axis and positive is not None:
        found["PhaseEncodingDirection"] = axis + ("-" if positive == (axis == "j") else "")
    elif axis:
        found["PhaseEncodingAxis"] = axis
    return {name: round(v, 9) if isinstance(v, float) else v for name, v in found.items() if v}


def _axis(elements: Elements, sources: list[Elements]) -> str:
    """``"i"`` where phase is encoded along the rows, ``"j"`` along the columns, empty where the header does not say."""
    geometries = [geometry for source in sources if (geometry := source.first(0x00189125))]
    word = next((text for source in (*geometries, elements) if (text := source.text(0x00181312))), "").upper()
    return "j" if word.startswith("COL") else "i" if word == "ROW" else ""


def _modifier(elements: Elements, sources: list[Elements], tag: int) -> float | None:
    """A number that stands at the top, among the modifiers of a multi-frame file, or in Philips' private copy of those."""
    copy = elements.private(0x2005, "Philips MR Imaging DD 005", 0x0F) or elements.private(0x2005, "Philips MR Imaging DD 004", 0x0F)
    places = [elements, *(m for source in sources if (m := source.first(0x00189115))), *elements.items(copy)]
    return next((number for place in places if (number := place.number(tag)) is not None), None)


def _readout(spacing_s: float, lines: int, found: dict[str, Any]) -> None:
    if 0 < spacing_s < LONGEST_SPACING_S:
        found["EffectiveEchoSpacing"] = spacing_s
        found["TotalReadoutTime"] = spacing_s * (lines - 1)


def _siemens(elements: Elements, frame: Elements | None, lines: int, found: dict[str, Any]) -> bool | None:
    """Mosaics and slices with CSA headers, or private tags (XA)."""
    csa = elements.raw(elements.private(0x29, "SIEMENS CSA HEADER", 0x10))
    protocol = elements.raw(elements.private(0x29, "SIEMENS CSA HEADER", 0x20))
    private = elements
    if frame is not None:
        private = frame.first(frame.private(0x21, "SIEMENS MR SDI 02", 0xFE)) or elements
    shared = elements.first(0x52009229)
    if not protocol and shared is not None:
        inner = shared.first(shared.private(0x21, "SIEMENS MR SDS 01", 0xFE))
        protocol = inner.raw(inner.private(0x21, "SIEMENS MR SDS 01", 0x19)) if inner else b""
    if not protocol:
        protocol = elements.raw(elements.private(0x21, "SIEMENS MR SDS 01", 0x19))
    bandwidth = (
        *csa_numbers(csa, "BandwidthPerPixelPhaseEncode"),
        *private.numbers(private.private(0x21, "SIEMENS MR SDI 02", 0x53)),
        *elements.numbers(elements.private(0x19, "SIEMENS MR HEADER", 0x28)),
    )
    if bandwidth and bandwidth[0] > 0:
        _readout(1 / (bandwidth[0] * lines), lines, found)
    text = elements.text(elements.private(0x51, "SIEMENS MR HEADER", 0x11))  # e.g. p2, p2s3
    told = re.search(r"p([0-9]{1,2})", text)
    factor = float(told[1]) if told else protocol_number(protocol, "sPat.lAccelFactPE")
    found["ParallelReductionFactorInPlane"] = factor if factor and 1 <= factor <= MOST else None
    slices = re.search(r"s([0-9]{1,2})", text)
    bands = protocol_number(protocol, "sSliceAcceleration.lMultiBandFactor") or (float(slices[1]) if slices else 0)
    found["MultibandAccelerationFactor"] = int(bands) if bands and 1 < bands <= MOST else None
    positive = (
        *csa_numbers(csa, "PhaseEncodingDirectionPositive"),
        *private.numbers(private.private(0x21, "SIEMENS MR SDI 02", 0x1C)),
    )
    return bool(positive[0]) if positive and positive[0] in (0, 1) else None


def _ge(elements: Elements, axis: str, lines: int, found: dict[str, Any]) -> bool | None:
    factors = elements.numbers(elements.private(0x43, "GEMS_PARM_01", 0x83))  # reciprocals
    asset = 1 / factors[0] if factors and 0 < factors[0] <= 1 else 1.0
    found["ParallelReductionFactorInPlane"] = round(asset, 4) if factors else None
    bands = elements.words(elements.private(0x43, "GEMS_PARM_01", 0xB6))
    if bands and bands[0].isdigit() and 1 < int(bands[0]) <= MOST:
        found["MultibandAccelerationFactor"] = int(bands[0])
    spacing_us = elements.number(elements.private(0x43, "GEMS_PARM_01", 0x2C)) or 0.0
    matrix = [int(n) for n in elements.numbers(0x00181310) if n > 0]  # frequency rows and columns, phase rows and columns
    acquired = matrix[-1 if axis == "j" or len(matrix) < 2 else 0] if matrix else lines
    rounded = 4 if "PFF" in elements.words(0x00180022) else 2  # partial Fourier acquires lines in groups of so many
    if spacing_us > 0 and lines > 1:
        readout_s = (math.ceil(acquired / asset / rounded) * rounded - 1) * spacing_us * 1e-6
        _readout(readout_s / (lines - 1), lines, found)
    word = elements.text(0x00189034)
    return UNFLIPPED[word] if word in UNFLIPPED else _ge_polarity(elements.raw(elements.private(0x43, "GEMS_PARM_01", 0x2A)))


def _ge_polarity(data: bytes) -> bool | None:
    """Whether phase was encoded in the usual direction, from GE's user data; None where those do not say.

    Their layout, a part of the header of raw data files, is that of dcm2niix's and dicm2nii's readers.
    """
    start = struct.unpack_from("<H", data, 24)[0] if len(data) > 26 else 0
    if not start or len(data) < start + 0x394 + 2:
        return None
    (version,) = struct.unpack_from("<f", data, start)
    if not 5 <= version <= 40:
        return None
    moved = version >= 25.002
    base = start + 0x4C * moved
    flags, kind, order = (struct.unpack_from("<H", data, at)[0] for at in (base + 0x30, base + 0x3A, base + 0x394 - 0x8C * moved))
    if not kind & EPI:
        return None
    return bool(bool(flags & POLARITY) == (order == 2))  # 2: from the bottom up


def _philips(elements: Elements, lines: int, found: dict[str, Any]) -> None:
    """Estimates from the shift between fat and water; Philips' headers hold no echo spacing, nor the polarity."""
    shift = elements.number(elements.private(0x2001, "Philips Imaging DD 001", 0x22))
    factor = elements.number(elements.private(0x2001, "Philips Imaging DD 001", 0x13))
    frequency_mhz = elements.number(0x00180084)
    if shift and factor and frequency_mhz and factor > 1 and lines > 1:
        spacing_s = shift / (frequency_mhz * FAT_WATER_PPM * (factor + 1))
        found["EstimatedTotalReadoutTime"] = spacing_s * factor
        found["EstimatedEffectiveEchoSpacing"] = spacing_s * factor / (lines - 1)


def ge_interleaved(elements: Elements) -> bool | None:
    """Whether GE's protocol block says that slices are acquired every other one first; None where it does not say."""
    block = elements.raw(elements.private(0x25, "GEMS_SERS_01", 0x1B))
    start = block.find(b"\x1f\x8b")
    if start < 0:
        return None
    try:
        text = zlib.decompressobj(31).decompress(block[start:], 1 << 16)
    except zlib.error:
        return None
    found = re.search(rb'SLICEORDER "([01])"', text)
    return found[1] == b"1" if found else None


def acceleration_of_slices(times_s: NDArray[np.float64]) -> int:
    """How many slices are acquired at once, by their times: as many share each of them; 1 where that is not so."""
    counts = np.unique(times_s.round(4), return_counts=True)[1]
    return int(counts[0]) if len(counts) > 1 and (counts == counts[0]).all() else 1
