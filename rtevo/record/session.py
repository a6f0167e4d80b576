"""A recorded session: the one way to read a run's record."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomllib
from numpy.typing import NDArray

from rtevo.errors import DataError
from rtevo.outside import MOST_JSON, parse_json, read_regular, shown
from rtevo.record.kinds import End, EventRecord, ImageRecord, Start, Unsealed, VolumeRecord
from rtevo.record.localizer import EVENTS, event_rows, is_localizer
from rtevo.record.log import LOG, read_log, read_up_to_damage
from rtevo.record.parts import Part, RecordT, of_kind, parts
from rtevo.record.recorder import image_path, volume_path
from rtevo.record.sealing import is_sealed, open_sealed, opener_of
from rtevo.record.tables import Row, aligned_volumes, frame, hidden_truth, motion_frame, summarise, trial_rows, trials_frame, write_table
from rtevo.records import EventKind, Grid, RunClock, VolumeFlag

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image

    from rtevo.config import Config
    from rtevo.decode import Decoder

__all__ = ["Images", "RecordedSession", "evolution_of", "finalise", "load", "taken_over"]

EVOLUTION = "evolution.json"
MAPS = (("acquisition", "distortion"), ("acquisition", "t2star"), ("decoder", "white_matter_mask"), ("decoder", "csf_mask"))
"""Settings that name files of which the run's folder has a copy."""
DECODER_BEFORE, EVOLUTION_BEFORE = "decoder-before", "evolution-before.json"  # copies of what a run of a visit took over
STATE_DIGITS = 39  # of a whole number in the state of evolution: 128 bits of a random generator
MOST_SETTINGS = 1 << 20  # bytes of a session file
Key = tuple[int, int]


class Images(Mapping[Key, "Image"]):
    """Pictures of a session by generation and candidate, in the order of painting; each is read on access."""

    def __init__(self, out: Path, keys: list[Key]) -> None:
        self._out, self._keys = out, dict.fromkeys(keys)

    def __getitem__(self, key: Key) -> Image:
        from PIL import Image

        if key not in self._keys:
            raise KeyError(key)
        with Image.open(image_path(self._out, *key)) as picture:
            return picture.convert("RGB")

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class RecordedSession:
    """The record of a run, read from its folder: a function of the log and of the files that the log names.

    Parameters
    ----------
    out : Path
        The session's folder.
    damaged : bool
        Read a damaged log up to the damage, and describe it in `damage`; otherwise damage is an error.

    Attributes
    ----------
    log : list of Record
        See :mod:`rtevo.record.kinds`.
    parts : list of Part
        Runs of the scanner: more than one if the session was interrupted and resumed.
    damage : str
        What is wrong with the log, and where; empty: nothing.

    Raises
    ------
    DataError
        There is no log, it is damaged, or its schema is a later one.
    """

    def __init__(self, out: Path | str, damaged: bool = False) -> None:
        self.out, self.damage = Path(out), ""
        if damaged:
            self.log, self.damage = read_up_to_damage(self.out / LOG)
        else:
            self.log = read_log(self.out / LOG)
        self.parts: list[Part] = parts(self.log)

    def __repr__(self) -> str:
        volumes, shown = len(aligned_volumes(self.parts)), len(self.events(EventKind.ONSET))
        several = f" in {len(self.parts)} parts" if len(self.parts) > 1 else ""
        state = f"LOG DAMAGED: {self.damage}" if self.damage else f"{len(self.log)} records{several}, rtevo {self.start.rtevo or '?'}"
        return (
            f"RecordedSession({str(self.out)!r}): {self.start.condition or '?'}, {self.status}\n"
            f"  {volumes} volumes at TR {self.start.tr_s:g} s, {len(self.missing)} missing; {shown} images shown of {len(self.images)}\n"
            f"  {state}"
        )

    # --- the log ----------------------------------------------------------------------------------------------------------------------

    def records(self, kind: type[RecordT]) -> list[RecordT]:
        """Return the records of one kind, of all parts, in order."""
        return of_kind(self.log, kind)

    def events(self, *kinds: EventKind) -> list[EventRecord]:
        """Return the events of these kinds, of all parts, in order."""
        return [event for part in self.parts for event in part.events(*kinds)]

    @property
    def start(self) -> Start:
        """How the session began."""
        return self.parts[0].start if self.parts else Start()

    @property
    def end(self) -> End | None:
        """How its last part ended; None: interrupted, or still running."""
        return self.parts[-1].end if self.parts else None

    @property
    def status(self) -> str:
        """How it ended, in a word; ``unfinished``: not ended."""
        return (self.end.status if self.end else None) or "unfinished"

    @property
    def sealed(self) -> bool:
        """Whether its condition is sealed: tables, summary and report then hide it, also after its end."""
        evolution = (self.start.settings or {}).get("evolution", {})
        return bool(evolution.get("sealed")) and not self.records(Unsealed)

    @property
    def versions(self) -> list[str]:
        """Versions of rtevo that recorded it."""
        return list(dict.fromkeys(part.start.rtevo for part in self.parts))

    @property
    def clock(self) -> RunClock:
        """Session time to seconds, in the last part; each part has its own."""
        return self.parts[-1].clock if self.parts else RunClock(self.start.tr_s)

    @property
    def grid(self) -> Grid | None:
        """The grid of the first part's volumes; None: no volumes."""
        return next((part.grid for part in self.parts if part.grid is not None), None)

    @cached_property
    def missing(self) -> list[int]:
        """Numbers of the volumes that never came, or, if raw volumes were kept, have no file."""
        gone = {r.index for r in aligned_volumes(self.parts) if r.flags & VolumeFlag.MISSING} | set(self.unsaved)
        if self.settings.get("record", {}).get("save_volumes", "raw") in ("raw", "both"):
            gone |= set(self.absent)
        return sorted(gone)

    @property
    def unsaved(self) -> list[int]:
        """Numbers of the volumes that count as missing when the session is decoded again, see `Part.unsaved`."""
        return [index for part in self.parts for index in part.unsaved]

    @property
    def came(self) -> list[int]:
        """Numbers of the volumes that came."""
        return list(dict.fromkeys(r.index for r in self.records(VolumeRecord) if not r.flags & VolumeFlag.MISSING))

    @property
    def absent(self) -> list[int]:
        """Numbers of the volumes that came and have no file."""
        return [index for index in self.came if not volume_path(self.out, index).exists()]

    # --- what follows from it -----------------------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[Row]:
        """All data of each image; `trials` holds the numbers among them."""
        return trial_rows(self.parts, hidden_truth(self.out))

    @cached_property
    def trials(self) -> DataFrame:
        """A row for each image in the order of presentation, as in ``trials.tsv``: columns in `rtevo.record.TRIALS`."""
        rows = [{**row, "fitness": None} for row in self.rows] if self.sealed else self.rows
        return trials_frame(rows, len(self.parts) > 1)

    @property
    def localizer(self) -> bool:
        """Whether this is a localizer: pictures of known categories, without evolution."""
        return is_localizer(self.parts)

    @cached_property
    def events_table(self) -> DataFrame:
        """Of a localizer: a row for each picture shown, as in ``events.tsv``: columns in `rtevo.record.EVENTS`."""
        return frame(event_rows(self.parts), {name: kind for name, (kind, _) in EVENTS.items()})

    @cached_property
    def motion(self) -> DataFrame:
        """A row for each volume, as in ``motion.tsv``: columns in `rtevo.record.MOTION`."""
        return motion_frame(self.parts, self.start.tr_s)

    @property
    def images(self) -> Images:
        """The painted pictures, by generation and candidate; read on access."""
        return Images(self.out, [(r.generation, r.candidate) for r in self.records(ImageRecord)])

    @property
    def latents(self) -> NDArray[np.float32]:
        """The requested latents: float32 (trials, latent size), a row for each of `trials`; NaN: not in the log."""
        return self._stacked("latent")

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """The requested latents in CLIP space: float32 (trials, embedding size)."""
        return self._stacked("embedding")

    @property
    def post_embeddings(self) -> NDArray[np.float32]:
        """The re-encoded embeddings of the pictures: float32 (trials, embedding size)."""
        return self._stacked("post_embedding", len(self.rows) and self.embeddings.shape[1])

    def _stacked(self, name: str, size: int = 0) -> NDArray[np.float32]:
        size = max((len(row[name]) for row in self.rows if name in row), default=size)
        nothing = np.full(size, np.nan, np.float32)
        return np.array([row.get(name, nothing) for row in self.rows], np.float32).reshape(len(self.rows), size)

    @cached_property
    def summary(self) -> Row:
        """What ``summary.json`` holds: see :data:`rtevo.record.files.SUMMARY`."""
        found = summarise(self.parts, [{**row, "fitness": None} for row in self.rows] if self.sealed else self.rows)
        return found | {"condition": told[-1].condition} if (told := self.records(Unsealed)) else found

    # --- what the log tells of ----------------------------------------------------------------------------------------------------------

    @property
    def session_file(self) -> Path:
        """The resolved session file."""
        return self.out / "session.toml"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The recorded session file as tables, with today's names of keys; empty: not recorded."""
        from rtevo.config import recorded

        found = self.start.settings
        if found is None:
            return self.file_settings if self.session_file.exists() else {}
        return recorded(found, f"{self.out / LOG}: settings")

    @property
    def file_settings(self) -> Mapping[str, Any]:
        """The settings in the present ``session.toml``.

        Raises
        ------
        DataError
            The file is not a session file, or its participant, session or run cannot be part of a file name.
        """
        from rtevo.config import recorded

        try:
            found = tomllib.loads(read_regular(self.session_file, MOST_SETTINGS).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.session_file}: expected a session file, found something else ({shown(error)})") from None
        return recorded(found, str(self.session_file))

    @property
    def config(self) -> Config:
        """The session's settings, checked like those of a new session: the files that they name must exist."""
        from rtevo.config import load

        return load(self.session_file, taken_over(self.out))

    @property
    def decoder_folder(self) -> Path:
        """The folder of the session's original decoder."""
        named = self.settings.get("decoder", {}).get("folder", "")
        return Path(named) if named else self.out / "decoder"

    @property
    def decoder(self) -> Decoder:
        """The session's original decoder."""
        from rtevo.decode import load_decoder

        settings = self.settings.get("decoder", {})
        return load_decoder(
            self.decoder_folder, settings.get("name", "") or None, settings.get("objective", ""), settings.get("more_folders", ())
        )

    # --- its files ----------------------------------------------------------------------------------------------------------------------

    def save(self) -> Row:
        """Write ``trials.tsv``, ``motion.tsv``, ``latents.npz`` and ``summary.json``; return the summary.

        A localizer has ``events.tsv`` in place of latents.
        """
        write_table(self.trials, self.out / "trials.tsv")
        write_table(self.motion, self.out / "motion.tsv")
        if self.localizer:
            write_table(self.events_table, self.out / "events.tsv")
        else:
            self._save_latents()
        (self.out / "summary.json").write_text(json.dumps(self.summary, indent=2) + "\n", encoding="utf-8")
        return self.summary

    def _save_latents(self) -> None:
        asked = np.array(["latent" in row for row in self.rows], bool)
        keys = np.array([(row["generation"], row["candidate"]) for row in self.rows], np.int32).reshape(-1, 2)[asked]
        np.savez_compressed(
            self.out / "latents.npz",
            generation=keys[:, 0],
            candidate=keys[:, 1],
            latents=self.latents[asked],
            embeddings=self.embeddings[asked],
            post_embeddings=self.post_embeddings[asked],
        )


def load(out: Path | str) -> RecordedSession:
    """Read the record of a run, also of one that still runs, was interrupted, or has a damaged log.

    Parameters
    ----------
    out : Path
        The session's folder.

    Returns
    -------
    RecordedSession
        The session up to any damage of the log; `damage` and a warning describe the damage.

    Raises
    ------
    DataError
        The folder holds no session.
    """
    session = RecordedSession(out, damaged=True)
    if session.damage:
        warnings.warn(f"read up to the damage: {session.damage}", stacklevel=2)
    return session


def finalise(out: Path) -> Row:
    """Make the tables and the summary of a session from its log.

    Parameters
    ----------
    out : Path
        The session's folder, with ``record.jsonl``; ``trials.tsv``, ``motion.tsv``, ``latents.npz`` and ``summary.json`` are written to it.

    Returns
    -------
    dict
        The summary: see :data:`rtevo.record.files.SUMMARY`.

    Raises
    ------
    DataError
        There is no log, or it is damaged.
    """
    return RecordedSession(out).save()


def taken_over(out: Path) -> dict[tuple[str, str], str]:
    """Return settings with the present paths of the copied states that a run continues: its folder may have been moved."""
    found: dict[tuple[str, str], str] = {}
    try:
        tables = tomllib.loads(read_regular(out / "session.toml", MOST_SETTINGS).decode("utf-8"))
    except (OSError, ValueError, RecursionError):  # loading the file later reports the problem
        return found
    for section, name in (("decoder", DECODER_BEFORE), ("evolution", EVOLUTION_BEFORE)):
        table = tables.get(section)
        named = table.get("continue_from") if isinstance(table, dict) else None
        if isinstance(named, str) and Path(named).name == name and (out / name).exists():
            found[section, "continue_from"] = str(out / name)
    for section, key in MAPS:
        table = tables.get(section)
        named = table.get(key) if isinstance(table, dict) else None
        if isinstance(named, str) and (copy := out / Path(named).name).name.startswith(f"{key}.") and copy.exists():
            found[section, key] = str(copy)
    return found


def evolution_of(place: Path) -> Row:
    """Read the state of an earlier run's evolution at its end.

    Parameters
    ----------
    place : Path
        The session's folder, or its ``evolution.json``.

    Raises
    ------
    OSError, ValueError, DataError, ConfigError
        The state cannot be read, or, if sealed, not be opened.
    """
    path = place / EVOLUTION if place.is_dir() else place
    data = read_regular(path, MOST_JSON)
    if is_sealed(data):
        data = open_sealed(data, opener_of(RecordedSession(path.parent).log))
    return dict(parse_json(data, digits=STATE_DIGITS))
