"""Shared by tests of the link: waits for an event, and a stranger at the bridge's door."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import zmq

__all__ = ["LIMIT_S", "stranger", "until"]

LIMIT_S = 60.0  # a test that takes longer hangs


def until(condition: Callable[[], bool], work: Callable[[], object] = lambda: time.sleep(0.001)) -> None:
    """Do some work again and again until the condition holds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        work()


@contextlib.contextmanager
def stranger(endpoint: str, server_key: bytes = b"") -> Iterator[zmq.Socket[bytes]]:
    """A stranger's socket at a bridge's endpoint; encrypted if the bridge's key is given."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.sndhwm = 0
    if server_key:
        dealer.curve_serverkey = server_key
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
    dealer.connect(endpoint)
    try:
        yield dealer
    finally:
        dealer.close(linger=0)
        context.term()
