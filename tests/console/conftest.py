"""Ports."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture(scope="module")
def unused_tcp_port() -> int:
    """A port of loopback that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
