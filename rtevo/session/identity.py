"""Whether the scanner's headers name the participant and the day that a session is for."""

from __future__ import annotations

import datetime
from fnmatch import fnmatchcase

from rtevo.config.sections import Acquisition
from rtevo.outside import shown

__all__ = ["misnamed"]

ON = "; stop, look who lies in the scanner and what was registered there"


def misnamed(settings: Acquisition, patient_id: str, study_date: str, today: datetime.date) -> str:
    """Say how the headers contradict the session file; empty where they do not.

    Parameters
    ----------
    settings : Acquisition
    patient_id : str
        The scanner's PatientID, (0010,0020); empty where the headers have none.
    study_date : str
        Its study date, (0008,0020), YYYYMMDD; empty where the headers have none.
    today : date
    """
    wanted = f"{today:%Y%m%d}" if settings.study_date == "today" else settings.study_date
    for name, key, expected, found in (
        ("PatientID", "patient_id", settings.patient_id, patient_id.strip()),
        ("study date", "study_date", wanted, study_date.strip()),
    ):
        if not expected:
            continue
        if not found:
            if settings.anonymous == "refuse":
                return f"the scanner's {name}: expected {expected!r}, the headers have none ([acquisition] anonymous = 'accept'){ON}"
        elif not fnmatchcase(found, expected):
            return f"the scanner's {name}: expected {expected!r} ([acquisition] {key}), found {shown(found)!r}{ON}"
    return ""
