"""CURVE keys, and where plain text is allowed."""

from __future__ import annotations

import ipaddress
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rtevo.wire.checks import WireError

__all__ = ["SUPPORT_FILE", "KeyFile", "is_loopback"]

SUPPORT_FILE = "support.json"  # in a folder of keys


@dataclass(frozen=True)
class KeyFile:
    """CURVE keys of one computer, Z85 text of 40 characters each.

    `role`: "support" or "presenter"; `server`: public key of the support computer (in a presenter's file); `clients`: name and public
    key of each presenter that is admitted (in the support computer's file).
    """

    role: str
    public: str
    secret: str
    server: str = ""
    clients: tuple[tuple[str, str], ...] = ()

    def write(self, path: Path) -> None:
        """Write the file, readable by its owner alone."""
        path.touch(mode=0o600)
        path.chmod(0o600)
        content = {"rtevo-keys": 1, "role": self.role, "public": self.public, "secret": self.secret}
        extra = {"server": self.server} if self.role == "presenter" else {"clients": dict(self.clients)}
        path.write_text(json.dumps({**content, **extra}, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path, role: str) -> KeyFile:
        """Read a file that `python -m rtevo.bridge keys` wrote.

        Raises
        ------
        WireError
            The file does not exist, is not a key file, belongs to the other computer, or is readable by other users of this computer.
        """
        try:
            _private(Path(path))
            content = json.loads(Path(path).read_text())
            clients = tuple((str(name), str(key)) for name, key in content.get("clients", {}).items())
            keys = cls(content["role"], content["public"], content["secret"], content.get("server", ""), clients)
        except OSError as error:
            raise WireError(f"{path}: expected a key file, got {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WireError(f"{path}: expected a key file as `python -m rtevo.bridge keys` writes, got {error!r}") from error
        if keys.role != role:
            raise WireError(f"{path}: expected the key file of the {role}, got that of the {keys.role}")
        needed = [keys.public, keys.secret, *(key for _, key in clients), *([keys.server] if role == "presenter" else [])]
        if not all(isinstance(key, str) and len(key) == 40 and key.isascii() for key in needed):
            raise WireError(f"{path}: expected keys of 40 Z85 characters each")
        return keys


def _private(path: Path) -> None:
    """Refuse a file that others than its owner can read, as ssh does; not checked on systems without such permissions."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise WireError(f"{path}: other users can read this secret key (mode {mode:04o}): chmod 600 it, or make new keys")


def is_loopback(where: str) -> bool:
    """Whether a ZeroMQ endpoint, address or host name can be reached from this computer only."""
    if where.startswith(("ipc://", "inproc://")):
        return True
    place = where.removeprefix("tcp://")
    for host in (place, place.rsplit(":", 1)[0]):
        if host == "localhost":
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False
