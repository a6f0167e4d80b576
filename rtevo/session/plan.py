"""The plan that every process of a session receives, decided before the first one starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rtevo.config import Config
from rtevo.localizer import Trial
from rtevo.records import EventKind

__all__ = ["MEASURED", "Plan", "Visit"]

MEASURED = {"ratings": EventKind.RATING, "physiology": EventKind.PHYSIOLOGY}
"""Conditions whose fitness comes with an event, by its kind: their images need no volumes."""


@dataclass(frozen=True)
class Visit:
    """A run's place in a visit: another may follow it.

    Parameters
    ----------
    follows : str
        Folder of the run before; empty: it is the first.
    repeats : str
        Folder of the run that it repeats, where it does.
    passed : tuple of str
        Series of the runs before, by their UIDs: what still comes of them is not this run's.
    """

    follows: str = ""
    repeats: str = ""
    passed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The plan that every process receives, decided before the first one starts.

    Parameters
    ----------
    name : str
        Of the session, in the names of its rings.
    config : Config
    condition : str
        What drives evolution; the session file's, or that of the blinding key.
    out : Path
        Where results go.
    runtime : Path
        Folder for what only lives as long as the session (shared words, simulated scanner's files, sockets).
    incoming : Path
        Folder that volumes arrive in.
    capacity : int
        Voxels of the largest volume that may come.
    tr_s : float
    decoder : Path
        Decoder folder.
    decoder_name : str or None
    maps : tuple of str
        Of an objective, whose scores are recorded beside its own; empty where there is one map.
    embedding_size : int
    image_size : tuple of int
        Height, width.
    part : int
        0, or how often the session has been resumed.
    first_volume : int
        Number of this part's first volume: parts are counted through.
    rebaseline : bool
        A resumed part scores its images from its own volumes alone.
    token : str
        What a browser has to know to see the console; empty: nothing.
    attended : bool
        Somebody can answer questions: at the console, or at the terminal.
    session_file : Path or None
        The file that the settings were read from: its comments are kept in the run's own.
    model_sha256 : str
        Fingerprint of the image model.
    trials : tuple of Trial
        Of a localizer, in the order of presentation; empty where images evolve.
    pictures : Path or None
        Of a localizer: the folder of its pictures.
    visit : Visit or None
        None: no other run follows.
    """

    name: str
    config: Config
    condition: str
    out: Path
    runtime: Path
    incoming: Path
    capacity: int
    tr_s: float
    decoder: Path
    decoder_name: str | None
    embedding_size: int
    image_size: tuple[int, int]
    part: int = 0
    first_volume: int = 0
    rebaseline: bool = False
    token: str = field(default="", repr=False)
    attended: bool = False
    session_file: Path | None = None
    model_sha256: str = ""
    maps: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    pictures: Path | None = None
    visit: Visit | None = None

    @property
    def localizer(self) -> bool:
        """Whether pictures of known categories are shown, and nothing evolves."""
        return bool(self.trials)

    @property
    def latent_space(self) -> Path:
        """The latent space's npz file."""
        return self.out / "latent_space.npz"

    @property
    def devices(self) -> int:
        """Number of processes that paint: one for each device; in a localizer, the one that reads pictures."""
        return 1 if self.localizer else len(self.config.generator.devices)

    @property
    def participant_endpoint(self) -> str:
        """Where a simulated participant looks at the headless presenter's screen."""
        return f"ipc://{self.runtime}/participant"
