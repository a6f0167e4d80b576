"""A DICOM node to which a scanner or an archive sends its pictures (C-STORE), in place of a folder.

What is received lies as a file in a folder, as it was sent, before the sender gets its answer, and from there goes the way of all
files: nothing that was acknowledged is lost, and a session can be replayed from it. Needs pynetdicom: ``pip install rtevo[dicom-net]``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rtevo.errors import ConfigError, DataError
from rtevo.ingest.folder import FolderSource
from rtevo.ingest.lobby import Lobby
from rtevo.ingest.volume import Volume
from rtevo.outside import shown

__all__ = ["DicomReceiver", "Peer", "check_listening", "echo", "reachable"]

SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700  # DICOM PS3.4, table B.2-1
REJECTED, SERVICE_USER, UNKNOWN_CALLER = 0x01, 0x01, 0x03  # DICOM PS3.8, table 9-21
LEAVE_S = 1.0  # longest wait for senders that were turned away
ECHO_S = 5.0  # longest wait for the answer to a C-ECHO
LARGEST_PDU = 1 << 20  # bytes; the default of 16 KiB takes twice as long
STORED = (  # SOP classes that are taken: DICOM PS3.4, annex B.5
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",  # enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.3",  # enhanced MR, colour
    "1.2.840.10008.5.1.4.1.1.4.4",  # MR that was converted to enhanced
    "1.2.840.10008.5.1.4.1.1.4.2",  # these come with a study: spectra,
    "1.2.840.10008.5.1.4.1.1.7",  # screen shots,
    "1.2.840.10008.5.1.4.1.1.66",  # raw data,
    "1.3.12.2.1107.5.9.1",  # and Siemens' non-images
)
PASSED_OVER = (  # taken, acknowledged and not kept: refused, they would stop the whole transfer with some senders
    *(f"1.2.840.10008.5.1.4.1.1.11.{kind}" for kind in range(1, 13)),  # presentation states (Philips sends them first)
    *(f"1.2.840.10008.5.1.4.1.1.88.{kind}" for kind in (11, 22, 33, 34, 35, 40, 50, 59, 65, 67)),  # reports and key objects
    "1.2.840.10008.5.1.4.1.1.104.1",  # PDF
    *(f"1.3.46.670589.11.0.0.12.{kind}" for kind in (1, 2, 4)),  # Philips' private spectra, series data and examination cards
    *(f"1.2.840.10008.5.1.4.1.1.9.{kind}" for kind in ("1.1", "1.2", "2.1", "4.1", "6.1")),  # curves of electrodes and breathing
)
PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")  # transfer syntaxes of such
PLACES = 400  # associations at a time
OF_ONE = 200  # of them from one address: nobody floods others out
LARGEST_OBJECT, MOST_UNDER_WAY = 1 << 30, 1 << 31  # bytes of one object, and of all that are being sent
LONGEST = 500  # characters of a message, in which senders' names are
POLL_S = 0.05  # how often the listener looks whether it is to end
REQUEST_S = 10.0  # longest wait for what belongs to an association's beginning
VERIFICATION = "1.2.840.10008.1.1"  # C-ECHO: consoles test a node by it


def check_listening(address: str, port: int, *, dicom: bool = True) -> None:
    """Raise DataError where this computer cannot listen at an address and port, or cannot receive DICOM at all."""
    if dicom and importlib.util.find_spec("pynetdicom") is None:
        raise DataError("receiving over the DICOM network needs pynetdicom; install rtevo[dicom-net]")
    if not 0 <= port <= 65535:
        raise DataError(f"port {port}: expected 0 to 65535")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:  # pynetdicom leaves a socket open where it cannot bind it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as error:
        raise DataError(f"{address or 'all addresses'}, port {port}: cannot listen there ({error.strerror})") from None


def reachable(address: str) -> str:
    """Return an address at which this computer reaches what listens at `address` here."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def echo(address: str, port: int, called: str, calling: str) -> float:
    """Ask a node of this computer whether it is there (C-ECHO).

    Parameters
    ----------
    address, port : str, int
        Where it listens.
    called, calling : str
        AE titles: the node's, and the one to ask by.

    Returns
    -------
    float
        How long the answer took, s.

    Raises
    ------
    DataError
        It does not answer, or refuses.
    """
    from pynetdicom import AE

    entity = AE(ae_title=calling)
    entity.add_requested_context(VERIFICATION)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ECHO_S
    began = time.monotonic()
    association = entity.associate(reachable(address), port, ae_title=called)
    if not association.is_established:
        raise DataError(f"{called} at {address}, port {port}: no answer to C-ECHO: refused, or no receiver listens")
    status = association.send_c_echo()
    took_s = time.monotonic() - began
    association.release()
    if "Status" not in status or status.Status != SUCCESS:
        raise DataError(f"{called} at {address}, port {port}: no answer to C-ECHO")
    return took_s


def _named(uid: str, otherwise: str) -> str:
    """Return a name below the folder for a UID, and nowhere else: one of dots alone would be the folder above, or hidden."""
    return uid.strip(".") or otherwise


class Peer:
    """A sender that is allowed: its AE title, its address, or both.

    Parameters
    ----------
    text : str
        ``"TITLE"``, ``"TITLE@ADDRESS"`` or ``"@ADDRESS"``.

    Raises
    ------
    ConfigError
        If the text is none of these.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.title, _, self.address = self.text.partition("@")
        try:
            known = not self.address or bool(ipaddress.ip_address(self.address))
        except ValueError:
            known = False
        if not known or not (self.title or self.address) or len(self.title) > 16 or "\\" in self.title:
            raise ConfigError(f"peer: expected TITLE (at most 16 characters), TITLE@ADDRESS or @ADDRESS (an IP address), got {text!r}")

    def __str__(self) -> str:
        return self.text

    def allows(self, title: str, address: str) -> bool:
        """Whether this is the sender."""
        return self.title in ("", title) and self.address in ("", address)


class DicomReceiver:
    """Volumes of one run from pictures that are sent over the network; a context manager.

    Parameters
    ----------
    folder : path
        Where the files go; made if it is not there.
    port : int
        TCP port to listen on; 0 takes a free one (see :attr:`port`).
    address : str
        Network interface to listen on; empty: all.
    ae_title : str
        Name of this node, which senders must call.
    peers : sequence of str
        Who may send (see :class:`Peer`); empty: everyone who calls by the right name.
    **options
        Of :class:`FolderSource`: `series`, `patience_s`, `stall_s`, ...

    Attributes
    ----------
    port : int
        Where it listens.
    source : FolderSource
        Takes the files up.
    alarms : set of str
        Those of :attr:`problems` for which somebody must act: an allowed sender was refused.
    passed_over : int
        Objects without pictures that were taken and not kept.

    Raises
    ------
    DataError
        If pynetdicom is not installed, or the port is taken.
    ConfigError
        If a peer or the name is malformed.
    """

    def __init__(
        self,
        folder: Path | str,
        port: int = 11112,
        *,
        address: str = "",
        ae_title: str = "RTEVO",
        peers: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.folder = Path(folder)
        self.source = FolderSource(folder, **{"settle_s": None, **options})  # files are renamed into place
        self._peers = [Peer(text) for text in peers]
        self._notes: list[str] = []
        self._lock = threading.Lock()
        self._released: set[int] = set()
        self._under_way: dict[int, int] = {}  # bytes that came on each association since its last picture
        self._largest = LARGEST_OBJECT
        self._ae_title = ae_title
        self.alarms: set[str] = set()
        self.passed_over = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._server = self._listen(address, port, ae_title)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> DicomReceiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def problems(self) -> list[str]:
        """What went wrong, each once; senders that were refused or cut off included."""
        with self._lock:
            self.source.problems += self._notes
            self._notes.clear()
        return self.source.problems

    @property
    def duplicates(self) -> int:
        """Copies of files that came before."""
        return self.source.duplicates

    @property
    def seen(self) -> int:
        """Files that were looked at and settled."""
        return self.source.seen

    @property
    def pending(self) -> int:
        """Files and volumes that are not whole or held back."""
        return self.source.pending

    @property
    def told(self) -> str:
        """Which series the volumes are taken from, and why; empty until it is known."""
        return self.source.told

    @property
    def tr_s(self) -> float | None:
        """Repetition time of that series in seconds by its headers."""
        return self.source.tr_s

    @property
    def doubtful(self) -> bool:
        """Whether that series may still give way to a better one; as :attr:`FolderSource.doubtful`."""
        return self.source.doubtful

    def sidecar(self, volume: Volume) -> dict[str, Any]:
        """What the headers say of the run; as :meth:`FolderSource.sidecar`."""
        return self.source.sidecar(volume)

    def pass_over_present(self, known: Iterable[str] = ()) -> str:
        """Leave out what the folder held before; as :meth:`FolderSource.pass_over_present`."""
        return self.source.pass_over_present(known)

    @property
    def backlog(self) -> int:
        """Files that were not looked at yet; as :attr:`FolderSource.backlog`."""
        return self.source.backlog

    def poll(self) -> list[Volume]:
        """Volumes that are ready now; as :meth:`FolderSource.poll`."""
        return self.source.poll()

    def finish(self) -> list[Volume]:
        """Stop listening, and give the rest of the volumes; as :meth:`FolderSource.finish`."""
        self.close()
        return self.source.finish()

    def close(self) -> None:
        """Stop listening; pictures that are on their way are not waited for."""
        if self._server is not None:
            deadline = time.monotonic() + LEAVE_S
            for association in self._server.active_associations:  # those that were turned away stumble over an abort while they leave
                if not association.is_established:
                    association.join(max(0.0, deadline - time.monotonic()))
            self._server.ae.shutdown()
            self._server = None
            self._lobby.close()

    def _listen(self, address: str, port: int, ae_title: str) -> Any:
        check_listening(address, port)
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
        from pynetdicom.service_class import StorageServiceClass
        from pynetdicom.sop_class import register_uid
        from pynetdicom.transport import ThreadedAssociationServer

        for uid in (uid for uid in (*STORED, *PASSED_OVER) if uid.startswith("1.3.")):  # pynetdicom serves none that it does not know
            register_uid(uid, f"Private{uid.replace('.', '_')}", StorageServiceClass)
        try:
            entity = AE(ae_title=ae_title)
        except ValueError as error:
            raise ConfigError(f"ae_title: expected 1 to 16 characters, got {ae_title!r} ({error})") from None
        entity.require_called_aet = True
        entity.maximum_pdu_size = LARGEST_PDU
        for uid in STORED:
            entity.add_supported_context(uid, ALL_TRANSFER_SYNTAXES)
        for uid in PASSED_OVER:
            entity.add_supported_context(uid, list(PLAIN))
        entity.add_supported_context(VERIFICATION)
        entity.maximum_associations = PLACES
        entity.acse_timeout = REQUEST_S
        handlers = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_RELEASED, self._was_released),
            (evt.EVT_CONN_CLOSE, self._was_closed),
            (evt.EVT_ABORTED, self._was_aborted),
            (evt.EVT_DATA_RECV, self._came),
        ]
        receiver = self

        class Server(ThreadedAssociationServer):  # type: ignore[misc]
            """Lets connections wait in the lobby."""

            request_queue_size = 128

            def process_request(self, request: socket.socket, client_address: Any) -> None:
                if receiver._stranger(client_address[0]):
                    request.close()
                else:
                    receiver._lobby.enter(request, client_address)

            def admit(self, request: socket.socket, client_address: Any) -> None:
                held = sum(other.requestor.address == client_address[0] for other in self.active_associations)
                if held >= OF_ONE:
                    receiver._note(f"{client_address[0]}: a connection was closed: {held} associations of it are open", alarm=True)
                    request.close()
                else:
                    super().process_request(request, client_address)

        try:
            server = entity.make_server((address, port), ae_title=ae_title, evt_handlers=handlers, server_class=Server)
        except OSError as error:
            raise DataError(f"port {port}: cannot listen there ({error.strerror})") from error
        self._lobby = Lobby(server.admit)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": POLL_S}, name="DicomListener", daemon=True).start()
        entity._servers.append(server)  # so that it ends with its entity
        return server

    def _stranger(self, address: str) -> bool:
        """Whether nobody is allowed to send from an address, which is named."""
        if not self._peers or any(peer.address in ("", address) for peer in self._peers):
            return False
        self._note(f"closed a connection from {address}: no allowed peer has this address ({self._allowed()})")
        return True

    def _allowed(self) -> str:
        return "[acquisition] peers: " + ", ".join(map(str, self._peers))

    def _note(self, text: str, *, alarm: bool = False) -> None:
        text = shown(text, LONGEST)
        with self._lock:
            if alarm:
                self.alarms.add(text)
            if text not in self._notes and text not in self.source.problems:
                self._notes.append(text)

    def _requested(self, event: Any) -> None:
        """Turn away a sender that is not on the list."""
        requestor = event.assoc.requestor
        title, address = requestor.primitive.calling_ae_title.strip(), requestor.address
        if self._peers and not any(peer.allows(title, address) for peer in self._peers):
            known = any(peer.title == title for peer in self._peers)
            if known:
                text = f"refused {title}@{address}: an allowed peer, but at another address; correct {self._allowed()}"
            else:
                text = f"refused a sender that is not among the allowed peers: {title}@{address} ({self._allowed()})"
            self._note(text, alarm=known)
            event.assoc.acse.send_reject(REJECTED, SERVICE_USER, UNKNOWN_CALLER)
            event.assoc.kill()

    def _rejected(self, event: Any) -> None:
        """Name a sender that may send, and was turned away all the same."""
        requestor = event.assoc.requestor
        called = requestor.primitive.called_ae_title.strip()
        sender = f"{requestor.primitive.calling_ae_title.strip()}@{requestor.address}"
        if called != self._ae_title:
            what = f"which called {called!r}; this node is {self._ae_title!r}: set that name at the sender, or [acquisition] ae_title here"
        else:
            what = f"because all {PLACES} places are taken by associations that were not closed; the sender must send again"
        self._note(f"refused {sender}, {what}", alarm=True)

    def _was_released(self, event: Any) -> None:
        self._released.add(id(event.assoc))

    def _was_aborted(self, event: Any) -> None:
        self._cut(event)

    def _was_closed(self, event: Any) -> None:
        self._cut(event)

    def _cut(self, event: Any) -> None:
        """Name a sender whose connection ended before it said that it was done."""
        assoc = event.assoc
        if id(assoc) not in self._released and assoc.is_acceptor and (assoc.is_established or assoc.is_aborted):
            requestor = assoc.requestor
            title = requestor.primitive.calling_ae_title.strip() if requestor.primitive else "?"
            self._note(f"{title}@{requestor.address}: the connection ended before the sender had finished; it may have to send again")
        self._released.discard(id(assoc))
        with self._lock:
            self._under_way.pop(id(assoc), None)

    def _store(self, event: Any) -> int:
        """Write one picture as a file; the answer tells the sender whether that worked."""
        request = event.request
        if str(request.AffectedSOPClassUID) in PASSED_OVER:
            self.passed_over += 1
            return SUCCESS
        series = ""
        with contextlib.suppress(Exception):
            found = re.search(rb"\x20\x00\x0e\x00(?:UI..|....)([0-9.]{1,64})", event.request.DataSet.getbuffer()[: 1 << 16], re.S)
            series = found[1].decode() if found else series
        name = _named(re.sub(r"[^0-9.]", "_", str(request.AffectedSOPInstanceUID))[:64], "picture")
        folder = self.folder / _named(series, "series")
        with self._lock:
            self._under_way.pop(id(event.assoc), None)
        temporary = folder / f"{name}.{threading.get_ident()}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(event.encoded_dataset())
            os.replace(temporary, self._free(folder, name))
        except OSError as error:
            self._note(f"{temporary}: a received picture cannot be written ({error.strerror}); the sender was told")
            with contextlib.suppress(OSError):
                temporary.unlink()
            return OUT_OF_RESOURCES
        return SUCCESS

    def _came(self, event: Any) -> None:
        """Cut an association off that sends more than any picture has, or is one too many of those that send at once."""
        with self._lock:
            own = self._under_way.get(id(event.assoc), 0) + len(event.data)
            self._under_way[id(event.assoc)] = own
            beyond = own > self._largest or sum(self._under_way.values()) > MOST_UNDER_WAY
        if beyond:
            self._note(f"{event.assoc.requestor.address}: cut off: {own} bytes of one object received, expected at most {self._largest}")
            if event.assoc.dul.socket is not None:
                event.assoc.dul.socket.close()

    def _free(self, folder: Path, name: str) -> Path:
        """A name that is not taken: a second sending of a picture is kept beside the first, to be counted as its copy."""
        path, number = folder / f"{name}.dcm", 2
        while path.exists():
            path, number = folder / f"{name}-{number}.dcm", number + 1
        return path
