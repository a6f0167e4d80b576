"""Ways to hand arrays from one process to others, behind one small interface, for bench_rings.py.

Every message carries two monotonic time stamps in its first 16 bytes: when the producer began with it, and when its contents were
in place (for those that copy while sending: when sending began).
"""

from __future__ import annotations

import itertools
import multiprocessing as mp
import os
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import posix_ipc
from numpy.typing import NDArray

from rtevo.shm import Reader, Ring

SLOTS = 8
Bytes = NDArray[np.uint8]
_numbers = itertools.count()


def stamp(array: Bytes, began_ns: int) -> None:
    """Write both times into a message."""
    array[:16].view(np.int64)[:] = began_ns, time.monotonic_ns()


class Receiver:
    """A reader's end: `receive` gives the bytes of the next message, valid until `release`."""

    def receive(self) -> Bytes:
        raise NotImplementedError

    def release(self) -> None:
        pass

    def close(self) -> None:
        pass


class Peer:
    """The producer's end, made in the parent; `endpoint(i)` is what reader i's process needs to open its end."""

    name = ""

    def __init__(self, size: int, readers: int) -> None:
        self.size, self.readers = size, readers

    def endpoint(self, index: int) -> tuple[Callable[..., Receiver], tuple[Any, ...]]:
        raise NotImplementedError

    def send(self, source: Bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


# -- this project's ring ------------------------------------------------------------------------------------------------------------


def _slot(size: int) -> np.dtype[np.void]:
    return np.dtype([("bytes", "u1", (size,))])


class RingPeer(Peer):
    name = "rtevo ring"

    def __init__(self, size: int, readers: int) -> None:
        super().__init__(size, readers)
        names = [Reader(f"r{index}") for index in range(readers)]
        self.ring = Ring.create(f"/rtevo-b{os.getpid()}-{next(_numbers)}", _slot(size), SLOTS, names, writer=True)

    def endpoint(self, index: int) -> tuple[Callable[..., Receiver], tuple[Any, ...]]:
        return RingReceiver, (self.ring.name, f"r{index}")

    def send(self, source: Bytes) -> None:
        began = time.monotonic_ns()
        with self.ring.reserve() as slot:
            array = slot["bytes"]
            array[...] = source
            stamp(array, began)

    def close(self) -> None:
        self.ring.close()


class RingReceiver(Receiver):
    def __init__(self, name: str, reader: str) -> None:
        self.ring = Ring.attach(name, reader)
        self.block: Any = None

    def receive(self) -> Bytes:
        self.block = self.ring.read()
        array: Bytes = self.block.__enter__()["bytes"]
        return array

    def release(self) -> None:
        self.block.__exit__(None, None, None)

    def close(self) -> None:
        self.ring.close()


# -- the standard library -----------------------------------------------------------------------------------------------------------


class QueuePeer(Peer):
    name = "mp.Queue"

    def __init__(self, size: int, readers: int) -> None:
        super().__init__(size, readers)
        self.queues = [mp.get_context("spawn").Queue(SLOTS) for _ in range(readers)]

    def endpoint(self, index: int) -> tuple[Callable[..., Receiver], tuple[Any, ...]]:
        return QueueReceiver, (self.queues[index],)

    def send(self, source: Bytes) -> None:
        began = time.monotonic_ns()
        message = source.copy()  # a feeder thread pickles it later: it must not change
        stamp(message, began)
        for queue in self.queues:
            queue.put(message)

    def close(self) -> None:
        for queue in self.queues:
            queue.close()
            queue.join_thread()


class QueueReceiver(Receiver):
    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def receive(self) -> Bytes:
        array: Bytes = self.queue.get()
        return array


class PipePeer(Peer):
    name = "Pipe"

    def __init__(self, size: int, readers: int) -> None:
        super().__init__(size, readers)
        self.pipes = [mp.get_context("spawn").Pipe(duplex=False) for _ in range(readers)]

    def endpoint(self, index: int) -> tuple[Callable[..., Receiver], tuple[Any, ...]]:
        return PipeReceiver, (self.pipes[index][0], self.size)

    def send(self, source: Bytes) -> None:
        stamp(source, time.monotonic_ns())
        for _, writer in self.pipes:
            writer.send_bytes(source.data)

    def close(self) -> None:
        for reader, writer in self.pipes:
            reader.close()
            writer.close()


class PipeReceiver(Receiver):
    def __init__(self, connection: Any, size: int) -> None:
        self.connection = connection
        self.buffer = np.empty(size, np.uint8)

    def receive(self) -> Bytes:
        self.connection.recv_bytes_into(self.buffer.data)
        return self.buffer


class SharedMemoryPeer(Peer):
    """Slots in one shared_memory block; a byte through a Pipe says that one is full, a byte back that it is free."""

    name = "shared_memory + Pipe"

    def __init__(self, size: int, readers: int) -> None:
        super().__init__(size, readers)
        self.memory = shared_memory.SharedMemory(create=True, size=SLOTS * size)
        self.slots: Bytes = np.ndarray((SLOTS, size), np.uint8, buffer=self.memory.buf)
        self.slots[...] = 0  # page faults now
        self.pipes = [mp.get_context("spawn").Pipe() for _ in range(readers)]
        self.sent = 0
        self.free = [SLOTS] * readers

    def endpoint(self, index: int) -> tuple[Callable[..., Receiver], tuple[Any, ...]]:
        return SharedMemoryReceiver, (self.memory.name, self.pipes[index][1], self.size)

    def send(self, source: Bytes) -> None:
        began = time.monotonic_ns()
        for index, (connection, _) in enumerate(self.pipes):
            while not self.free[index] or connection.poll():
                connection.recv_bytes()
                self.free[index] += 1
        number = self.sent % SLOTS
        array = self.slots[number]
        array[...] = source
        stamp(array, began)
        for index, (connection, _) in enumerate(self.pipes):
            connection.send_bytes(bytes([number]))
            self.free[index] -= 1
        self.sent += 1

    def close(self) -> None:
        del self.slots
        self.memory.close()
        self.memory.unlink()
        for pair in self.pipes:
            for connection in pair:
                connection.close()


class SharedMemoryReceiver(Receiver):
    def __init__(self, name: str, connection: Any, size: int) -> None:
        self.memory = shared_memory.SharedMemory(name)
        self.slots: Bytes = np.ndarray((SLOTS, size), np.uint8, buffer=self.memory.buf)
        self.slots.max()  # page faults now
        self.connection = connection

    def receive(self) -> Bytes:
        array: Bytes = self.slots[self.connection.recv_bytes()[0]]
        return array

    def release(self) -> None:
        self.connection.send_bytes(b".")

    def close(self) -> None:
        del self.slots
        self.memory.close()


# -- other packages -----------------------------------------------------------------------------------------------------------------


class ZmqPeer(Peer):
    name = "pyzmq ipc"

    def __init__(self, size: int, readers: int) -> None:
        import zmq

        super().__init__(size, readers)
        self.context = zmq.Context()
        self.paths = [f"/tmp/rtevo-bench-{os.getpid()}-{next(_numbers)}" for _ in range(readers)]
        self.sockets = [self.context.socket(zmq.PUSH) for _ in range(readers)]
        for socket, path in zip(self.sockets, self.paths, strict=True):
            socket.set_hwm(SLOTS)
            socket.bind(f"ipc://{path}")

    def endpoint(self, index: int) -> tuple[Callable[..., Receiver], tuple[Any, ...]]:
        return ZmqReceiver, (f"ipc://{self.paths[index]}",)

    def send(self, source: Bytes) -> None:
        began = time.monotonic_ns()
        message = source.copy()  # sent without another copy by a background thread: it must not change
        stamp(message, began)
        for socket in self.sockets:
            socket.send(message.data, copy=False)

    def close(self) -> None:
        self.context.destroy(linger=0)
        for path in self.paths:
            with suppress(FileNotFoundError):
                os.unlink(path)


class ZmqReceiver(Receiver):
    def __init__(self, endpoint: str) -> None:
        import zmq

        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.PULL)
        self.socket.set_hwm(SLOTS)
        self.socket.connect(endpoint)

    def receive(self) -> Bytes:
        return np.frombuffer(self.socket.recv(copy=False).buffer, np.uint8)

    def close(self) -> None:
        self.context.destroy(linger=0)


def _iceoryx_service(name: str, readers: int) -> tuple[Any, Any, Any]:
    import ctypes

    import iceoryx2 as iox

    iox.set_log_level(iox.LogLevel.Error)
    node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
    service = (
        node.service_builder(iox.ServiceName.new(name))
        .publish_subscribe(iox.Slice[ctypes.c_uint8])
        .payload_alignment(iox.Alignment.new(64))
        .enable_safe_overflow(False)
        .subscriber_max_buffer_size(SLOTS)
        .subscriber_max_borrowed_samples(2)
        .max_subscribers(readers)
        .open_or_create()
    )
    event = node.service_builder(iox.ServiceName.new(name + "-event")).event().open_or_create()
    return node, service, event


class IceoryxPeer(Peer):
    """Publish and subscribe without overflow, and an event for waking up."""

    name = "iceoryx2"

    def __init__(self, size: int, readers: int) -> None:
        import iceoryx2 as iox

        super().__init__(size, readers)
        self.service_name = f"rtevo-bench-{os.getpid()}-{next(_numbers)}"
        self.node, service, event = _iceoryx_service(self.service_name, readers)
        builder = service.publisher_builder().initial_max_slice_len(size)
        self.publisher = builder.backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered).create()
        self.notifier = event.notifier_builder().create()

    def endpoint(self, index: int) -> tuple[Callable[..., Receiver], tuple[Any, ...]]:
        return IceoryxReceiver, (self.service_name, self.readers)

    def send(self, source: Bytes) -> None:
        began = time.monotonic_ns()
        sample = self.publisher.loan_slice_uninit(self.size)
        array = np.frombuffer(sample.payload().as_memory_view(), np.uint8)
        array[...] = source
        stamp(array, began)
        del array
        sample.assume_init().send()
        self.notifier.notify()

    def close(self) -> None:
        for port in (self.publisher, self.notifier):
            port.delete()
        del self.publisher, self.notifier, self.node


class IceoryxReceiver(Receiver):
    def __init__(self, name: str, readers: int) -> None:
        import iceoryx2 as iox

        self.node, service, event = _iceoryx_service(name, readers)
        self.subscriber = service.subscriber_builder().create()
        self.listener = event.listener_builder().create()
        self.patience = iox.Duration.from_millis(250)
        self.sample: Any = None

    def receive(self) -> Bytes:
        while (sample := self.subscriber.receive()) is None:
            self.listener.timed_wait(self.patience)
        self.sample = sample
        return np.frombuffer(sample.payload().as_memory_view(), np.uint8)

    def release(self) -> None:
        self.sample.delete()
        self.sample = None

    def close(self) -> None:
        for port in (self.subscriber, self.listener):
            port.delete()
        del self.subscriber, self.listener, self.node


# -- what nothing can beat ----------------------------------------------------------------------------------------------------------


class SemaphorePeer(Peer):
    """No payload: a semaphore posted and waited for; what waking a process costs by itself."""

    name = "semaphore alone"

    def __init__(self, size: int, readers: int) -> None:
        super().__init__(size, readers)
        self.memory = shared_memory.SharedMemory(create=True, size=4096)
        self.array = np.ndarray((16,), np.uint8, buffer=self.memory.buf)
        self.names = [f"/bench-{os.getpid()}-{next(_numbers)}" for _ in range(readers)]  # "/rtevo-" is for rings alone
        self.semaphores = [posix_ipc.Semaphore(name, posix_ipc.O_CREX) for name in self.names]

    def endpoint(self, index: int) -> tuple[Callable[..., Receiver], tuple[Any, ...]]:
        return SemaphoreReceiver, (self.memory.name, self.names[index])

    def send(self, source: Bytes) -> None:
        stamp(self.array, time.monotonic_ns())
        for semaphore in self.semaphores:
            semaphore.release()

    def close(self) -> None:
        del self.array
        self.memory.close()
        self.memory.unlink()
        for semaphore in self.semaphores:
            semaphore.unlink()


class SemaphoreReceiver(Receiver):
    def __init__(self, memory: str, semaphore: str) -> None:
        self.memory = shared_memory.SharedMemory(memory)
        self.array: Bytes = np.ndarray((16,), np.uint8, buffer=self.memory.buf)
        self.semaphore = posix_ipc.Semaphore(semaphore)

    def receive(self) -> Bytes:
        self.semaphore.acquire()
        return self.array

    def close(self) -> None:
        del self.array
        self.memory.close()


PEERS: tuple[type[Peer], ...] = (RingPeer, IceoryxPeer, SharedMemoryPeer, ZmqPeer, PipePeer, QueuePeer, SemaphorePeer)


def serve(endpoints: dict[str, tuple[Callable[..., Receiver], tuple[Any, ...]]], control: Any) -> None:
    """Act as a reader of every peer: receive blocks of messages as ordered over `control`, and report their times."""
    receivers = {name: make(*arguments) for name, (make, arguments) in endpoints.items()}
    control.send("open")
    while (command := control.recv()) is not None:
        name, count, expected = command
        receiver = receivers[name]
        times = np.empty((count, 3), np.int64)
        control.send("ready")
        whole = True
        for row in times:
            array = receiver.receive()
            now = time.monotonic_ns()
            row[:2] = array[:16].view(np.int64)
            row[2] = now
            if expected is not None:
                whole = whole and np.array_equal(array[16:], expected[16:])
            del array
            receiver.release()
        control.send((times, whole))
    for receiver in receivers.values():
        receiver.close()
