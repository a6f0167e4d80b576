"""Check that the scanner's headers name the session's participant and day."""

from __future__ import annotations

import datetime
from dataclasses import replace
from fnmatch import fnmatchcase

from rtevo.config.sections import Acquisition
from rtevo.outside import shown

__all__ = ["misnamed"]

NIGHT = 6  # o'clock
ON = "; stop, and check who lies in the scanner and what was registered there"


def misnamed(settings: Acquisition, patient_id: str, study_date: str, now: datetime.datetime) -> str:
    """Return how the headers contradict the session file; empty if they agree.

    Parameters
    ----------
    settings : Acquisition
    patient_id : str
        The scanner's PatientID, (0010,0020); empty: none in the headers.
    study_date : str
        Its study date, (0008,0020), YYYYMMDD; empty: none in the headers.
    now : datetime
        Local time: a visit that began the evening before lasts until `NIGHT`.
    """
    days = [now, now - datetime.timedelta(days=1)] if now.hour < NIGHT else [now]
    if settings.study_date == "today" and study_date.strip() in [f"{day:%Y%m%d}" for day in days]:
        return misnamed(replace(settings, study_date=""), patient_id, "", now)
    wanted = f"{now:%Y%m%d}" if settings.study_date == "today" else settings.study_date
    for name, key, expected, found in (
        ("PatientID", "patient_id", settings.patient_id, patient_id.strip()),
        ("study date", "study_date", wanted, study_date.strip()),
    ):
        if not expected:
            continue
        if not found:
            if settings.anonymous == "refuse":
                return f"the scanner's {name}: expected {expected!r}, found none in the headers ([acquisition] anonymous = 'accept'){ON}"
        elif not fnmatchcase(found, expected):
            return f"the scanner's {name}: expected {expected!r} ([acquisition] {key}), found {shown(found)!r}{ON}"
    return ""
