"""A scanner, or a script beside one, that sends over the network in place of writing files: C-STORE, and the push socket's messages.

Both senders have ``send(name, contents)``, as a folder's delivery has (:class:`rtevo.simulate.faults.Delivery`), and return once the
receiver has acknowledged.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from rtevo.errors import LinkError
from rtevo.records import Grid
from rtevo.wire import KeyFile

__all__ = ["PushEncoder", "PushSender", "StoreSender"]

ANSWER_MS = 60_000  # longest wait for an answer


class StoreSender:
    """Sends DICOM files by C-STORE over one association, or another where a file's kind needs one; a context manager.

    Parameters
    ----------
    address, port, called
        The receiver's address, TCP port and AE title.
    calling : str
        The sender's own AE title.

    Raises
    ------
    LinkError
        If the receiver does not accept the association, or a file.
    """

    def __init__(self, address: str, port: int, called: str, calling: str) -> None:
        self._receiver = (address, port, called)
        self._calling = calling
        self._associations: dict[tuple[str, str], Any] = {}  # by kind of picture and transfer syntax

    def __enter__(self) -> StoreSender:
        return self

    def __exit__(self, *_: object) -> None:
        for association in self._associations.values():
            if association.is_established:
                association.release()

    def send(self, name: str, contents: bytes) -> None:
        """Send one file."""
        import pydicom

        data = pydicom.dcmread(io.BytesIO(contents))
        kind = (str(data.SOPClassUID), str(data.file_meta.TransferSyntaxUID))
        association = self._associations.get(kind)
        if association is None:
            association = self._associations[kind] = self._associate(*kind)
        if not association.is_established:
            raise LinkError(f"{name}: the receiver has ended the association")
        status = association.send_c_store(data)
        if "Status" not in status or status.Status != 0:
            raise LinkError(f"{name}: the receiver answered {f'0x{status.Status:04X}' if 'Status' in status else 'nothing'} to C-STORE")

    def _associate(self, picture: str, syntax: str) -> Any:
        from pynetdicom import AE

        address, port, called = self._receiver
        entity = AE(ae_title=self._calling)
        entity.add_requested_context(picture, syntax)
        association = entity.associate(address, port, ae_title=called)
        if not association.is_established:
            raise LinkError(f"{called}@{address}:{port}: expected the association of {self._calling} to be accepted, was refused")
        return association


class PushEncoder:
    """Volumes as messages for the socket to which scripts push (:mod:`rtevo.ingest.push`): the header's JSON, a newline, the voxels.

    Parameters
    ----------
    grid : Grid
        Of the volumes.
    tr_s : float
        Repetition time, s.
    series : str
        Name of the run.
    echo_times_s : tuple of float
        Of volumes of several echoes, s.
    """

    def __init__(self, grid: Grid, tr_s: float, series: str, echo_times_s: tuple[float, ...] = ()) -> None:
        self._header = {"shape": grid.shape, "affine": grid.affine.tolist(), "tr_s": tr_s, "series": series}
        if echo_times_s:
            self._header |= {"shape": (len(echo_times_s), *grid.shape), "echo_times_s": echo_times_s}
        self._tr_s = tr_s

    def path(self, index: int) -> Path:
        """Name of a volume's message."""
        return Path(f"volume-{index:05d}")

    def encode(self, index: int, volume: NDArray[np.float32] | NDArray[np.int16]) -> bytes:
        """The message of one volume."""
        header = {**self._header, "index": index, "dtype": volume.dtype.str, "acquired_s": index * self._tr_s}
        return json.dumps(header).encode() + b"\n" + np.ascontiguousarray(volume).tobytes()


class PushSender:
    """Sends what :class:`PushEncoder` makes to the socket of the session; a context manager.

    Parameters
    ----------
    endpoint : str
        Where the session listens.
    keys : wire.KeyFile, optional
        The sender's, of a session whose socket is encrypted.
    """

    def __init__(self, endpoint: str, keys: KeyFile | None = None) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVTIMEO, ANSWER_MS)
        if keys is not None:
            for option, key in (
                (zmq.CURVE_PUBLICKEY, keys.public),
                (zmq.CURVE_SECRETKEY, keys.secret),
                (zmq.CURVE_SERVERKEY, keys.server),
            ):
                self._socket.set(option, key.encode())
        self._socket.connect(endpoint)

    def __enter__(self) -> PushSender:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, name: str, contents: bytes) -> None:
        """Send one message.

        Raises
        ------
        LinkError
            If it is refused, or not answered.
        """
        self._socket.send_multipart(contents.split(b"\n", 1))
        try:
            answer = json.loads(self._socket.recv())
        except zmq.Again:
            raise LinkError(f"{name}: no answer from {self._socket.get_string(zmq.LAST_ENDPOINT)} in {ANSWER_MS / 1000:g} s") from None
        if not answer.get("ok"):
            raise LinkError(f"{name}: refused: {answer.get('error')}")
