"""A page about a run: ``python -m rtevo.report OUT``."""

from __future__ import annotations

from rtevo.report.exposure import exposure, exposure_page
from rtevo.report.gather import Session, gather
from rtevo.report.page import page
from rtevo.report.pages import pages, save

__all__ = ["Session", "exposure", "exposure_page", "gather", "page", "pages", "save"]
