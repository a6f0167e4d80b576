"""Keys of where volumes come from, and of what is made of them."""

from __future__ import annotations

from dataclasses import dataclass

from rtevo.config.keys import above, at_least, is_address, is_peer, is_title, key, one_of

__all__ = ["Acquisition"]


@dataclass(frozen=True)
class Acquisition:
    """Where volumes come from."""

    source: str = key(
        "simulate",
        "simulate (a simulated participant in a simulated scanner), replay (a recorded series), watch (a real scanner)",
        **one_of("simulate", "replay", "watch"),
    )
    delivery: str = key(
        "folder",
        "how volumes arrive: folder (files in a watched folder), dicom (sent to this computer, C-STORE), push (sent by a script, ZeroMQ)",
        **one_of("folder", "dicom", "push"),
    )
    folder: str = key(
        "",
        "replay: the recorded series; watch: the scanner's export folder, or (dicom) the folder for received files, "
        "empty = received/ in the run's folder",
        path="folder",
    )
    address: str = key(
        "127.0.0.1", "watch, dicom and push: this computer's address to listen at, 0.0.0.0 = all", "an IP address", is_address
    )
    port: int = key(11112, "watch, dicom and push: TCP port to listen at", "1 to 65535", lambda x: 1 <= x <= 65535)
    ae_title: str = key("RTEVO", "dicom: this computer's name, which senders must call", "1 to 16 characters", is_title)
    peers: tuple[str, ...] = key(
        (),
        "watch, dicom and push: who may send; needed where address is not loopback; push knows addresses only",
        "a list of TITLE, TITLE@ADDRESS or @ADDRESS",
        lambda x: all(map(is_peer, x)),
    )
    keys: str = key(
        "",
        "push: folder made by `python -m rtevo.bridge keys`, with a key for each sender; needed where address is not loopback",
        path="folder",
    )
    series: str = key(
        "",
        "series to use: its number or UID, or (part of) its description or protocol name, * and ? allowed; "
        "empty = the one that looks functional; a series from before the session is used only by number or UID",
    )
    tr_s: float = key(0.0, "repetition time, s; 0 = from the headers (watch: must be given)", *at_least(0))
    echoes: int = key(
        1,
        "number of echoes of each volume, the shortest ones, that are combined, weighted by T2*; a volume that lacks one of them is "
        "missing; 1 = the first echo alone",
        "1 to 8",
        lambda x: 1 <= x <= 8,
    )
    t2star: str = key("", "echoes: map of T2* in s, in today's scanner space; empty = from the run's first volumes", path="file")
    distortion: str = key(
        "",
        "map of the distortion along phase encoding, in today's scanner space (FSL, ANTs, SDCFlows), to correct each volume; "
        "empty = volumes stay distorted",
        path="file",
    )
    distortion_unit: str = key(
        "Hz",
        "unit of the map: Hz or rad/s (a field map), voxels (a shift along phase encoding), mm (a displacement field of ANTs)",
        **one_of("Hz", "rad/s", "voxels", "mm"),
    )
    phase_encoding: str = key(
        "",
        "distortion: direction of phase encoding on the volumes' grid, in BIDS notation; empty = from the headers",
        "i, i-, j, j-, k, k- or empty",
        lambda x: x in ("", "i", "i-", "j", "j-", "k", "k-"),
    )
    readout_s: float = key(0.0, "distortion: total read-out time, s; 0 = from the headers", *at_least(0))
    patient_id: str = key(
        "", "expected PatientID of the scanner, * and ? allowed: another one stops the run before the first image; empty = not checked"
    )
    study_date: str = key(
        "",
        "expected study date of the scanner: today (until 6 o'clock also the day before), or YYYYMMDD; another one stops the run before "
        "the first image; empty = not checked",
        "today, or eight digits",
        lambda x: x in ("", "today") or (len(x) == 8 and x.isascii() and x.isdigit()),
    )
    anonymous: str = key(
        "accept",
        "patient_id, study_date: headers without these (the scanner anonymises, scripts push): accept, refuse",
        **one_of("accept", "refuse"),
    )
    largest: tuple[int, ...] = key(
        (128, 128, 96),
        "watch: voxels along X, Y, Z of the largest volume that the scanner may send (only their product counts)",
        "three whole numbers of 4 to 1024",
        lambda x: len(x) == 3 and all(4 <= v <= 1024 for v in x),
    )
    patience_tr: float = key(3.0, "a volume that is still missing this many TRs after its successor is declared missing", *above(0))
    stall_s: float = key(30.0, "a file that is still incomplete after this many seconds is reported by name", *above(0))
