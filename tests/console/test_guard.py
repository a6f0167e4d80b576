"""Who gets to the console, and who does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rtevo.config import Console, build
from rtevo.console.guard import Guard
from rtevo.errors import ConfigError
from rtevo.session.checks import check_console

TOKEN = "right"
HOME = "127.0.0.1:8080"


def ask(token: str, kind: str = "http", host: str = HOME, query: str = "", **headers: str) -> dict[str, Any]:
    """Ask a guarded application that answers 200 to everything; give status and headers, or the websocket's close code."""
    reached = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        if scope.get("type") == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    told = [(name.encode(), value.encode()) for name, value in {"host": host, **headers}.items()]
    scope = {"type": kind, "path": "/x", "query_string": query.encode(), "headers": told}
    asyncio.run(Guard(application, token)(scope, receive, send))
    found: dict[str, Any] = {"reached": bool(reached)}
    for message in sent:
        if message.get("type") == "http.response.start":
            found |= {"status": message["status"], "headers": {a.decode(): b.decode() for a, b in message["headers"]}}
    return found


@pytest.mark.parametrize("host", [HOME, "localhost:9000", "[::1]:8080"])
def test_this_computer_needs_no_token(host: str) -> None:
    assert ask("", host=host)["status"] == 200
    assert ask("", "websocket", host, origin=f"http://{host}")["reached"]


@pytest.mark.parametrize("host", ["rebound.example:8080", "192.168.1.5:8080", "127.0.0.1.example", ""])
def test_without_a_token_only_loopback_names_are_answered(host: str) -> None:
    assert ask("", host=host) == {"reached": False, "status": 403, "headers": ask("", host=host)["headers"]}
    assert not ask("", "websocket", host)["reached"]


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_other_pages_are_refused_even_in_the_operators_browser(token: str, kind: str) -> None:
    assert not ask(token, kind, origin="http://elsewhere.example", cookie=f"rtevo_console={TOKEN}")["reached"]


def test_the_token_in_the_address_becomes_a_cookie_that_lets_in() -> None:
    first = ask(TOKEN, host="10.0.0.7:8080", query=f"token={TOKEN}")
    assert (first["status"], first["headers"]["location"], first["reached"]) == (303, "/x", False)
    cookie = first["headers"]["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    for kind in ("http", "websocket"):
        assert ask(TOKEN, kind, "10.0.0.7:8080", cookie=f"other=1; {cookie.split(';')[0]}")["reached"]


@pytest.mark.parametrize("query", ["", "token=", "token=wrong", f"token={TOKEN}x", "token=%ff"])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_nothing_but_the_token_lets_in(kind: str, query: str) -> None:
    for cookie in ("", "rtevo_console=", "rtevo_console=wrong", "rtevo_console", "\x7f=;;"):
        found = ask(TOKEN, kind, query=query, cookie=cookie)
        assert not found["reached"]
        assert found.get("status", 401) == 401


def test_a_websocket_is_not_let_in_by_its_address() -> None:
    assert not ask(TOKEN, "websocket", query=f"token={TOKEN}")["reached"]


def test_pages_may_load_nothing_from_elsewhere_and_tell_nobody_their_address() -> None:
    headers = ask("")["headers"]
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["referrer-policy"] == "no-referrer"


def test_tokens_differ_and_are_long(unused_tcp_port: int) -> None:
    pytest.importorskip("nicegui")
    config = build({"console": {"port": unused_tcp_port, "address": "0.0.0.0"}})
    tokens = {check_console(config) for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) >= 43 for token in tokens)  # 32 bytes


def test_loopback_needs_a_token_too_and_no_console_none(unused_tcp_port: int) -> None:
    pytest.importorskip("nicegui")
    assert check_console(build({})) == ""
    assert len(check_console(build({"console": {"port": unused_tcp_port}}))) >= 43


@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_page_loads_is_refused_without_an_origin_too(token: str, kind: str, site: str) -> None:
    cookie = {"cookie": f"rtevo_console={TOKEN}"}
    assert not ask(token, kind, **{"sec-fetch-site": site}, **cookie)["reached"]
    assert ask(token, kind, **{"sec-fetch-site": "same-origin"}, **cookie)["reached"]
    assert ask(token, kind, **{"sec-fetch-site": "none"}, **cookie)["reached"]


@pytest.mark.parametrize("host", ["[::1", "[", "]", "127.0.0.1:99999999", "\xff", "[v1.x]"])
def test_a_host_that_is_none_is_refused_not_an_error(host: str) -> None:
    found = ask("", host=host)
    assert found["reached"] is (host == "127.0.0.1:99999999")
    assert found["status"] in (200, 403)
    assert ask("", origin=f"http://{host}")["status"] == 403


def test_pages_that_are_loaded_and_left_are_bounded() -> None:
    said: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("a further page was made")

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "path": "/", "query_string": b"", "headers": [(b"host", HOME.encode())]}
    asyncio.run(Guard(application, full=lambda: True)(scope, None, send))  # type: ignore[arg-type]
    assert said[0]["status"] == 503


def test_a_port_that_is_taken_is_told_before_anything_starts() -> None:
    import socket

    pytest.importorskip("nicegui")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"\[console\] port: 127.0.0.1:{port} cannot be listened at: Address already in use"):
            check_console(build({"console": {"port": port}}))


def test_only_addresses_are_addresses() -> None:
    with pytest.raises(ConfigError, match=r"\[console\] address: expected an IP address, got 'everywhere'"):
        build({"console": {"address": "everywhere"}})
    assert Console().address == "127.0.0.1"
