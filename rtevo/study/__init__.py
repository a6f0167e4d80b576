"""A study: participants, visits, runs and arms in one file, drawn and sealed once, and the runs made so far.

``file`` reads ``study.toml``; ``allocation`` draws the arms; ``ledger`` is the append-only log of the study's events; ``loading`` reads a
study; ``next`` starts a participant's next run (``settings`` writes its session file, ``start`` holds how each kind of run is started,
``counting`` decides whether it counts); ``unseal`` opens the arms; ``export`` writes the study as one BIDS data set. Nothing shows an arm
before a study is unsealed: docs/study.md describes the sealing.

``analysis`` holds the main analysis (one summary a participant, a randomisation test), ``mixed`` a mixed model beside it; ``group`` applies
both to a study; ``report``, ``figures`` and ``checklist`` write its page. ``power`` simulates whole studies beforehand.
"""

from rtevo.study.loading import Study, StudyRun, load

__all__ = ["Study", "StudyRun", "load"]
