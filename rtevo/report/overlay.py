"""The picture of an attempt to place the decoder on today's head, from what the session has recorded of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rtevo.decode import load_decoder, read_map
from rtevo.place import Placement, Verdict, draw_placement
from rtevo.record import PlacementRecord, RecordedSession, reference_path

__all__ = ["draw_attempt"]


def draw_attempt(out: Path, decoder: Path, name: str | None, part: int, attempt: int) -> Path | None:
    """Draw an attempt, once; return where the picture is.

    Parameters
    ----------
    out : Path
        The session's folder.
    decoder : Path
        The decoder's folder, as it was made.
    name : str or None
        Which map of it.
    part, attempt : int

    Returns
    -------
    Path or None
        A PNG file beside today's reference; None where there was no such attempt.
    """
    reference = reference_path(out, part, attempt)
    picture = reference.with_name(f"placement-{attempt}.png")
    if picture.exists():
        return picture
    if not reference.exists():
        return None
    session = RecordedSession(out)
    records = [r for r in session.parts[part].records(PlacementRecord) if r.attempt == attempt]
    if not records:
        return None
    today, today_grid = read_map(reference)
    settings = session.settings.get("decoder", {})
    made = load_decoder(decoder, name, settings.get("objective", ""), settings.get("more_folders", ()))
    found = _placement(records[-1])
    draw_placement(picture, found, made.reference, made.grid, today, today_grid, weight=np.abs(made.weights), title=out.name)
    return picture


def _placement(record: PlacementRecord) -> Placement:
    figures = {name: float(getattr(record, name)) for name in ("correlation", "overlap", "weight_kept", "expected_error_mm")}
    reasons = tuple(filter(None, record.reasons.split("\n")))
    return Placement(matrix=np.array(record.matrix), verdict=Verdict(record.verdict), reasons=reasons, **figures)
