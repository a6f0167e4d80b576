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
        ``support.json`` stays here; ``NAME.json`` is for the stimulus PC.
    clients : list of str
        Names of presenters; each is admitted from the next session on.

    Returns
    -------
    list of Path
        Files written for presenters.

    Raises
    ------
    LinkError
        Where a name cannot be that of a file, a presenter of that name is admitted already, or the folder holds something else.
    """
    if wrong := [name for name in clients if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)]:
        raise LinkError(f"--client {wrong[0]!r}: expected a name of letters, digits, - and _, 64 at most: it becomes the name of a file")
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
            raise LinkError(f"{folder}: there is a presenter {name!r} already; name another with --client")
        public, secret = (key.decode() for key in zmq.curve_keypair())
        admitted[name] = public
        wire.KeyFile("presenter", public, secret, server=own.public).write(folder / f"{name}.json")
        written.append(folder / f"{name}.json")
    wire.KeyFile("support", own.public, own.secret, clients=tuple(admitted.items())).write(path)
    return written


def with_guest(own: wire.KeyFile) -> tuple[wire.KeyFile, wire.KeyFile]:
    """Return the support computer's keys with one more sender admitted, for a check of its own, and that sender's."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    return replace(own, clients=(*own.clients, ("check", public))), wire.KeyFile("presenter", public, secret, server=own.public)


def say_keys(folder: Path, written: list[Path]) -> None:
    """Say what is to be done with key files."""
    print(f"{folder / SUPPORT_FILE}: stays on this computer; name {folder} in the session file ([bridge] keys)")
    for path in written:
        print(f"{path}: move to the stimulus PC, then start there: python -m presenter --connect tcp://... --key {path.name}")
