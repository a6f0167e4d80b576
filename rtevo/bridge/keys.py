"""Making CURVE keys: ``python -m rtevo.bridge keys DIR``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import zmq

from rtevo import wire
from rtevo.errors import LinkError
from rtevo.wire import WireError
from rtevo.wire.keys import SUPPORT_FILE

__all__ = ["SUPPORT_FILE", "make_keys", "say_keys", "with_guest"]


def make_keys(folder: Path, clients: list[str]) -> list[Path]:
    """Make CURVE keys: the support computer's once, and one pair for each presenter.

    Parameters
    ----------
    folder : Path
        Folder in which ``support.json`` stays; ``NAME.json`` is for the stimulus PC.
    clients : list of str
        Names of presenters, admitted from the next session on.

    Returns
    -------
    list of Path
        Files written for presenters.

    Raises
    ------
    LinkError
        A name cannot be a file name, a presenter of that name is admitted already, or the folder holds other files.
    """
    if wrong := [name for name in clients if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)]:
        raise LinkError(f"--client {wrong[0]!r}: expected a name of at most 64 letters, digits, - and _, because it becomes a file name")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / SUPPORT_FILE
    try:
        own = wire.KeyFile.read(path, "support") if path.exists() else None
    except WireError as error:
        raise LinkError(str(error)) from error
    if own is None:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        own = wire.KeyFile("support", public, secret)
    admitted, written = dict(own.clients), []
    for name in clients:
        if name in admitted or (folder / f"{name}.json").exists():
            raise LinkError(f"{folder}: presenter {name!r} has keys already; choose another name with --client")
        public, secret = (key.decode() for key in zmq.curve_keypair())
        admitted[name] = public
        wire.KeyFile("presenter", public, secret, server=own.public).write(folder / f"{name}.json")
        written.append(folder / f"{name}.json")
    wire.KeyFile("support", own.public, own.secret, clients=tuple(admitted.items())).write(path)
    return written


def with_guest(own: wire.KeyFile) -> tuple[wire.KeyFile, wire.KeyFile]:
    """Return the support computer's keys with one more sender admitted, and that sender's keys, for the computer's own check."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return replace(own, clients=(*own.clients, ("check", public))), wire.KeyFile("presenter", public, secret, server=own.public)


def say_keys(folder: Path, written: list[Path]) -> None:
    """Print what to do with the key files."""
    print(f"{folder / SUPPORT_FILE}: stays on this computer; name {folder} in the session file ([bridge] keys)")
    for path in written:
        print(f"{path}: move it to the stimulus PC, then start there: python -m presenter --connect tcp://... --key {path.name}")
