"""Pictures sent over the DICOM network, over loopback."""

from __future__ import annotations

import contextlib
import datetime
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest

from rtevo.errors import ConfigError, DataError
from rtevo.ingest import lobby
from rtevo.ingest.__main__ import main
from rtevo.ingest.receiver import DicomReceiver, Peer
from rtevo.records import Grid
from rtevo.simulate.dicom import MosaicWriter
from tests.support.link import until

pynetdicom = pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
GRID = Grid((8, 6, 5), np.diag([-3.0, 3.0, 3.5, 1.0]))
MR = "1.2.840.10008.5.1.4.1.1.4"
Made = Any


def picture(index: int) -> pydicom.Dataset:
    writer = MosaicWriter(Path(), GRID, 2.0, description="bold", started=datetime.datetime(2026, 1, 2))
    return pydicom.dcmread(BytesIO(writer.encode(index, np.full(GRID.shape, index, np.float32))))


def connect(receiver: DicomReceiver, title: str = "SCANNER", called: str = "RTEVO") -> Any:
    entity = pynetdicom.AE(ae_title=title)
    entity.add_requested_context(MR, "1.2.840.10008.1.2.1")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.1.2.1")
    entity.add_requested_context("1.2.840.10008.1.1")
    return entity.associate("127.0.0.1", receiver.port, ae_title=called)


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[DicomReceiver]:
    with DicomReceiver(tmp_path / "received", 0, address="127.0.0.1", peers=["SCANNER", "OTHER@127.0.0.1"], patience_s=3.0) as made:
        yield made


def test_pictures_become_volumes(receiver: DicomReceiver, made: Made) -> None:
    sender = connect(receiver)
    assert sender.is_established
    assert sender.send_c_echo().Status == 0
    got = []
    for index in (0, 2, 1, 1):
        assert sender.send_c_store(picture(index)).Status == 0
        got += receiver.poll()  # what was acknowledged is there
    sender.release()
    assert [volume.index for volume in got] == [0, 1, 2]
    assert [float(volume.data[0, 0, 0]) for volume in got] == [0, 1, 2]
    assert (receiver.duplicates, receiver.problems, receiver.pending) == (1, [], 0)
    assert receiver.finish() == []
    files = list(receiver.folder.rglob("*"))
    assert [path.name for path in files if path.name.endswith(".part")] == []


def test_a_file_is_kept_as_it_was_sent(receiver: DicomReceiver) -> None:
    sender = connect(receiver)
    sent = picture(3)
    sender.send_c_store(sent)
    sender.release()
    (path,) = receiver.folder.rglob("*.dcm")
    found = pydicom.dcmread(path)
    assert found.PixelData == sent.PixelData
    assert found[0x00291010].value == sent[0x00291010].value
    assert path.parent.name == sent.SeriesInstanceUID


@pytest.mark.parametrize(("title", "called", "why"), [("STRANGER", "RTEVO", "STRANGER@127.0.0.1"), ("SCANNER", "PACS", "called 'PACS'")])
def test_a_peer_that_is_not_allowed_is_refused_and_named(title: str, called: str, why: str, receiver: DicomReceiver) -> None:
    sender = connect(receiver, title, called)
    assert sender.is_rejected
    assert not sender.is_established
    until(lambda: bool(receiver.problems))
    assert why in receiver.problems[0]
    assert list(receiver.folder.iterdir()) == []
    friend = connect(receiver, "OTHER")  # and others go on
    assert friend.send_c_store(picture(0)).Status == 0
    friend.release()
    assert len(receiver.poll()) == 1


def test_an_association_that_is_aborted(receiver: DicomReceiver) -> None:
    sender = connect(receiver)
    assert sender.send_c_store(picture(0)).Status == 0
    sender.abort()
    until(lambda: bool(receiver.problems))
    assert receiver.problems == ["SCANNER@127.0.0.1: the connection ended before the sender had finished; it may have to send again"]
    again = connect(receiver)
    assert again.send_c_store(picture(1)).Status == 0
    again.release()
    assert [volume.index for volume in receiver.poll()] == [0, 1]


def bare(receiver: DicomReceiver) -> socket.socket:
    return socket.create_connection(("127.0.0.1", receiver.port), timeout=30)


def test_connections_that_say_nothing_hold_no_place(receiver: DicomReceiver) -> None:
    silent = [bare(receiver) for _ in range(40)]
    for index in range(3):
        bare(receiver).close()  # a port check
        sender = connect(receiver)
        assert sender.is_established
        assert sender.send_c_store(picture(index)).Status == 0
        sender.release()
    assert [volume.index for volume in receiver.poll()] == [0, 1, 2]
    assert receiver.problems == []
    for connection in silent:
        connection.close()


def test_a_silent_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lobby, "WAIT_S", 0.02)
    with DicomReceiver(tmp_path, 0, address="127.0.0.1", patience_s=3.0) as receiver, bare(receiver) as silent:
        assert silent.recv(1) == b""


def test_more_silent_connections_than_wait_push_out_the_oldest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lobby, "MOST_WAITING", 3)
    with DicomReceiver(tmp_path, 0, address="127.0.0.1", patience_s=3.0) as receiver:
        silent = [bare(receiver) for _ in range(4)]
        assert silent[0].recv(1) == b""
        for connection in silent:
            connection.close()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x05\0\0\0\0\x04\0\0\0\0", b"\x01\0\x7f\xff\xff\xff"])
def test_what_is_no_request_is_closed_at_once(said: bytes, receiver: DicomReceiver) -> None:
    with bare(receiver) as stranger:
        stranger.sendall(said)
        stranger.settimeout(lobby.WAIT_S / 2)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    sender = connect(receiver)
    assert sender.is_established
    sender.release()


def test_a_request_in_pieces_is_let_in_when_it_is_whole(receiver: DicomReceiver) -> None:
    wire = CutSocket(receiver.port, 1 << 20, piece=7)
    wire.serve()
    entity = pynetdicom.AE(ae_title="SCANNER")
    entity.add_requested_context(MR, "1.2.840.10008.1.2.1")
    sender = entity.associate("127.0.0.1", wire.port, ae_title="RTEVO")
    assert sender.is_established
    assert sender.send_c_store(picture(0)).Status == 0
    sender.release()
    assert [volume.index for volume in receiver.poll()] == [0]


def test_an_address_from_which_nobody_may_send_is_closed_at_once(tmp_path: Path) -> None:
    with DicomReceiver(tmp_path, 0, address="127.0.0.1", peers=["SCANNER@10.0.0.5", "@10.0.0.6"], patience_s=3.0) as receiver:
        for _ in range(3):
            with bare(receiver) as stranger:
                stranger.settimeout(lobby.WAIT_S / 2)
                assert stranger.recv(1) == b""
        told = "closed a connection from 127.0.0.1: no allowed peer has this address ([acquisition] peers: SCANNER@10.0.0.5, @10.0.0.6)"
        assert receiver.problems == [told]
        assert receiver.alarms == set()


def test_an_association_for_every_picture(receiver: DicomReceiver) -> None:
    for index in range(23):
        sender = connect(receiver)
        assert sender.is_established, index
        assert sender.send_c_store(picture(index)).Status == 0
        sender.release()
    assert [volume.index for volume in receiver.poll()] == list(range(23))


def test_many_associations_at_a_time(receiver: DicomReceiver) -> None:
    senders = [connect(receiver) for _ in range(14)]  # a router that closes none before all are sent
    assert all(sender.is_established for sender in senders)
    for index, sender in enumerate(senders):
        assert sender.send_c_store(picture(index)).Status == 0
    assert [volume.index for volume in receiver.poll()] == list(range(14))
    for sender in senders:
        sender.release()
    assert receiver.problems == []


def test_an_allowed_peer_that_finds_no_place_is_an_alarm(receiver: DicomReceiver) -> None:
    receiver._server.ae.maximum_associations = 1
    first = connect(receiver)
    assert first.is_established
    assert connect(receiver).is_rejected
    until(lambda: bool(receiver.problems))
    (told,) = receiver.problems
    assert "refused SCANNER@127.0.0.1, because all 400 places are taken" in told
    assert receiver.alarms == {told}
    first.release()


@pytest.mark.parametrize(
    ("title", "called", "words"),
    [("SCANNER", "PACS", "which called 'PACS'; this node is 'RTEVO': set that name"), ("FAR", "RTEVO", "an allowed peer, but at another")],
)
def test_an_allowed_peer_that_is_refused_is_an_alarm_that_says_what_to_do(title: str, called: str, words: str, tmp_path: Path) -> None:
    with DicomReceiver(tmp_path, 0, address="127.0.0.1", peers=["SCANNER", "FAR@10.1.1.1"], patience_s=3.0) as receiver:
        assert connect(receiver, title, called).is_rejected
        until(lambda: bool(receiver.problems))
        (told,) = receiver.problems
        assert words in told
        assert receiver.alarms == {told}


@pytest.mark.parametrize("kind", ["1.2.840.10008.5.1.4.1.1.11.1", "1.2.840.10008.5.1.4.1.1.88.59", "1.3.46.670589.11.0.0.12.2"])
def test_objects_without_pictures_are_taken_and_passed_over(kind: str, receiver: DicomReceiver) -> None:
    entity = pynetdicom.AE(ae_title="SCANNER")
    for uid in (kind, MR):
        entity.add_requested_context(uid, "1.2.840.10008.1.2.1")
    sender = entity.associate("127.0.0.1", receiver.port, ae_title="RTEVO")
    state = picture(7)
    del state.PixelData
    state.SOPClassUID = state.file_meta.MediaStorageSOPClassUID = kind
    assert sender.send_c_store(state).Status == 0  # sent first
    assert sender.send_c_store(picture(0)).Status == 0
    sender.release()
    assert [volume.index for volume in receiver.poll()] == [0]
    assert (receiver.passed_over, len(list(receiver.folder.rglob("*.dcm"))), receiver.problems) == (1, 1, [])


class CutSocket:
    """Passes a connection on to the receiver until so many bytes went through, and cuts it there."""

    def __init__(self, port: int, after: int, piece: int = 4096) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self._target, self._after, self._piece = port, after, piece

    def serve(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        near, _ = self.listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        threading.Thread(target=self._back, args=(far, near), daemon=True).start()
        left = self._after
        while left > 0 and (data := near.recv(min(self._piece, left))):
            far.sendall(data)
            left -= len(data)
        for connection in (far, near):
            connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.listener.close()

    @staticmethod
    def _back(far: socket.socket, near: socket.socket) -> None:
        try:
            while data := far.recv(4096):
                near.sendall(data)
        except OSError:
            pass


def test_an_association_that_is_cut_within_a_picture(receiver: DicomReceiver) -> None:
    size = len(picture(0).PixelData)
    wire = CutSocket(receiver.port, 3000 + size)  # the first picture goes through, the second in part
    wire.serve()
    entity = pynetdicom.AE(ae_title="SCANNER")
    entity.add_requested_context(MR, "1.2.840.10008.1.2.1")
    sender = entity.associate("127.0.0.1", wire.port, ae_title="RTEVO")
    assert sender.is_established
    connection = sender.dul.socket.socket
    whole = 0
    for index in range(20):
        try:
            answer = sender.send_c_store(picture(index))
        except RuntimeError:  # no longer connected
            break
        if "Status" not in answer:
            break
        whole += 1
    connection.close()  # pynetdicom leaves it open when it is cut
    until(lambda: bool(receiver.problems))
    assert "the connection ended before the sender had finished" in receiver.problems[0]
    assert [volume.index for volume in receiver.finish()] == list(range(whole))
    assert not list(receiver.folder.rglob("*.part"))


def test_what_cannot_be_written_is_not_acknowledged(receiver: DicomReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sender = connect(receiver)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert sender.send_c_store(picture(0)).Status == 0xA700
    sender.release()
    assert "No space left on device" in receiver.problems[0]
    assert receiver.poll() == []


def test_mistakes_are_told(tmp_path: Path, receiver: DicomReceiver) -> None:
    with pytest.raises(DataError, match=f"port {receiver.port}: cannot listen there"):
        DicomReceiver(tmp_path, receiver.port, address="127.0.0.1", patience_s=1)
    with pytest.raises(ConfigError, match="peer: expected TITLE"):
        Peer("@")
    with pytest.raises(ConfigError, match="ae_title: expected 1 to 16"):
        DicomReceiver(tmp_path, 0, ae_title="A TITLE THAT IS TOO LONG", patience_s=1)
    assert Peer("A@1.2.3.4").allows("A", "1.2.3.4")
    assert not Peer("A@1.2.3.4").allows("A", "1.2.3.5")
    assert Peer("@1.2.3.4").allows("B", "1.2.3.4")


def answers(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def test_the_command_line_receives_lists_and_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    into, out, results = tmp_path / "received", tmp_path / "run.nii", []
    arguments = [str(into), "--listen", str(port), "--peer", "SCANNER", "--volumes", "2", "--out", str(out)]
    listener = threading.Thread(target=lambda: results.append(main(arguments)))
    listener.start()
    entity = pynetdicom.AE(ae_title="SCANNER")
    entity.add_requested_context(MR, "1.2.840.10008.1.2.1")
    until(lambda: answers(port))
    sender = entity.associate("127.0.0.1", port, ae_title="RTEVO")
    for index in range(2):
        sender.send_c_store(picture(index))
    sender.release()
    listener.join(60)
    assert results == [0]
    shown = capsys.readouterr().out
    assert "volume 0" in shown
    assert "volume 1" in shown
    assert nibabel.load(out).shape == (*GRID.shape, 2)


storescu = pytest.mark.skipif(shutil.which("storescu") is None, reason="dcmtk's storescu is not installed")


def send(receiver: DicomReceiver, folder: Path, title: str = "SCANNER", called: str = "RTEVO") -> subprocess.CompletedProcess[str]:
    command = ["storescu", "-xe", "-aet", title, "-aec", called, "127.0.0.1", str(receiver.port), "+sd", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        picture(index).save_as(tmp_path / "pictures" / f"{index}.dcm", enforce_file_format=True)
    return tmp_path / "pictures"


@storescu
def test_dcmtk_sends(receiver: DicomReceiver, pictures: Path) -> None:
    assert send(receiver, pictures).returncode == 0
    volumes = receiver.poll()
    assert [volume.index for volume in volumes] == list(range(6))
    assert [float(volume.data[0, 0, 0]) for volume in volumes] == list(range(6))
    assert receiver.problems == []


@storescu
@pytest.mark.parametrize(("title", "called", "why"), [("NOBODY", "RTEVO", "Calling AE Title"), ("SCANNER", "PACS", "Called AE Title")])
def test_dcmtk_is_told_that_it_may_not_send(title: str, called: str, why: str, receiver: DicomReceiver, pictures: Path) -> None:
    done = send(receiver, pictures, title, called)
    assert done.returncode != 0
    assert f"{why} Not Recognized" in done.stdout + done.stderr
    until(lambda: bool(receiver.problems))
    assert receiver.finish() == []


@storescu
def test_dcmtk_is_killed_while_it_sends(receiver: DicomReceiver, pictures: Path) -> None:
    size = sum(path.stat().st_size for path in pictures.iterdir())
    wire = CutSocket(receiver.port, 9615 + size // 2)  # storescu asks in 9615 bytes to be let in
    wire.serve()
    command = ["storescu", "-xe", "-aet", "SCANNER", "-aec", "RTEVO", "127.0.0.1", str(wire.port), "+sd", str(pictures)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0
    until(lambda: bool(receiver.problems))
    assert "the connection ended before the sender had finished" in receiver.problems[0]
    assert send(receiver, pictures).returncode == 0  # and begins again
    volumes = receiver.finish()
    assert [volume.index for volume in volumes] == list(range(6))
    assert receiver.duplicates >= 1
    assert not list(receiver.folder.rglob("*.part"))


@pytest.mark.parametrize("text", ["", "@", "@@", "A@host.name", "A TITLE THAT IS TOO LONG", "A\\B"])
def test_peers_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="peer: expected TITLE"):
        Peer(text)


def test_a_port_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="port 70000: expected 0 to 65535"):
        DicomReceiver(tmp_path, 70000, patience_s=1)


@pytest.mark.parametrize(("series", "instance"), [("..", ".."), (".", "."), ("....", "1.2"), ("1.2", "../../x")])
def test_no_identifier_leads_out_of_the_folder(series: str, instance: str, receiver: DicomReceiver) -> None:
    sent = picture(0)
    with pydicom.config.disable_value_validation():
        sent.SeriesInstanceUID = series
        sent.SOPInstanceUID = sent.file_meta.MediaStorageSOPInstanceUID = instance
        sender = connect(receiver)
        before = set(receiver.folder.parent.rglob("*")) - set(receiver.folder.rglob("*"))
        assert sender.send_c_store(sent).Status == 0
        sender.release()
    (path,) = receiver.folder.rglob("*.dcm")
    assert not path.name.startswith(".")
    assert path.parent.parent == receiver.folder
    assert set(receiver.folder.parent.rglob("*")) - set(receiver.folder.rglob("*")) == before


def test_an_object_without_end_is_cut_off(receiver: DicomReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "_largest", 100_000)
    large = picture(0)
    large.add_new(0x00291099, "OB", bytes(8 << 20))
    sender = connect(receiver)
    with contextlib.closing(sender.dul.socket.socket), contextlib.suppress(RuntimeError):  # which pynetdicom leaves open
        assert "Status" not in sender.send_c_store(large)
    until(lambda: any("cut off" in problem for problem in receiver.problems))
    assert list(receiver.folder.rglob("*.dcm")) == []
    again = connect(receiver)
    assert again.send_c_store(picture(1)).Status == 0
    again.release()


def test_a_flood_from_one_address_pushes_out_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lobby, "MOST_WAITING", 8)
    with DicomReceiver(tmp_path, 0, address="127.0.0.1", patience_s=1.0) as receiver:
        place = ("127.0.0.1", receiver.port)
        with contextlib.ExitStack() as stack:
            quiet = stack.enter_context(socket.create_connection(place, 30, ("127.0.0.2", 0)))
            until(lambda: len(receiver._lobby._waiting) == 1)
            flood = [stack.enter_context(socket.create_connection(place, 30)) for _ in range(100)]
            until(lambda: sum(readable(each) for each in flood) >= len(flood) - 8)
            assert not readable(quiet)


def readable(connection: socket.socket) -> bool:
    return bool(select.select([connection], [], [], 0)[0])


def test_one_address_does_not_take_all_places(monkeypatch: pytest.MonkeyPatch, receiver: DicomReceiver) -> None:
    monkeypatch.setattr("rtevo.ingest.receiver.OF_ONE", 2)
    senders = [connect(receiver) for _ in range(2)]
    assert all(sender.is_established for sender in senders)
    with bare(receiver) as third:
        third.sendall(b"\x01\0" + (68).to_bytes(4, "big") + bytes(68))  # as long as a request
        with contextlib.suppress(ConnectionResetError):
            assert third.recv(1) == b""
    until(lambda: bool(receiver.problems))
    assert "2 associations of it are open" in receiver.problems[0]
    for sender in senders:
        sender.release()
