"""Access to a ZeroMQ socket, by address and by key, checked before a byte of a sender is read (ZAP, ZeroMQ RFC 27)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection

import zmq
from zmq.utils import z85

__all__ = ["Admission"]

DOMAIN = b"rtevo"
LOOK_MS = 200
KNOWN = 16  # refusals that are kept to be named


class Admission:
    """Answers for the sockets of a context, from a thread of its own.

    Parameters
    ----------
    context : zmq.Context
    addresses : collection of str
        From where connections may come; empty: from everywhere.
    clients : dict of str to str, optional
        Name and public key (Z85) of each sender; None: keys are not required.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], addresses: Collection[str], clients: dict[str, str] | None) -> None:
        self.refused: deque[str] = deque(maxlen=KNOWN)
        self._addresses = frozenset(addresses)
        self._keys = None if clients is None else {z85.decode(key.encode()) for key in clients.values()}
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind("inproc://zeromq.zap.01")
        self._open = True
        self._thread = threading.Thread(target=self._run, name="PushAdmission", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._open = False
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while self._open:
            if self._socket.poll(LOOK_MS):
                version, number, _, address, _, mechanism, *credentials = self._socket.recv_multipart()
                why = self._why_not(address.decode("ascii", "replace"), mechanism, credentials)
                if why and why not in self.refused:
                    self.refused.append(why)
                self._socket.send_multipart([version, number, b"400" if why else b"200", b"no" if why else b"OK", b"", b""])

    def _why_not(self, address: str, mechanism: bytes, credentials: list[bytes]) -> str:
        plain = address.removeprefix("::ffff:")
        if self._addresses and plain not in self._addresses:
            return f"{plain} is not among the allowed peers"
        if self._keys is not None and (mechanism != b"CURVE" or credentials[0] not in self._keys):
            return f"{plain} has no key listed in [acquisition] keys"
        return ""
