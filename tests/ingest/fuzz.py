"""Coverage-guided fuzzing of ingest, by hand: ``pip install atheris``, then ``python tests/ingest/fuzz.py CORPUS -max_total_time=600``.

CORPUS is a folder of small DICOM files. What is found belongs into ``test_dicom.py`` as a test.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["rtevo.ingest"]):
    from rtevo.ingest.dicom import parse_dicom
    from rtevo.ingest.selection import Selection
from rtevo.errors import DicomError


def one(data: bytes) -> None:
    """Take a file the whole way; only one kind of error may come of it."""
    try:
        file = parse_dicom(bytes(data), "fuzz")
    except DicomError:
        return
    selection = Selection(None, patience_s=1.0, first=1)
    for part in file.parts:
        selection.add(file, part, 0, 0.0, "fuzz")
    selection.settle(10.0, final=True)
    if selection.chosen:
        selection.chosen.assembler.advance(10.0, final=True)
    selection.told()
    selection.explain()


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
