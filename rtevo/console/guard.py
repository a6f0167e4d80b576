"""Who may see the console: this computer; others only with the token; no other page in the same browser."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from rtevo.wire import is_loopback

__all__ = ["LOOPBACK", "Guard"]

LOOPBACK = "127.0.0.1"
COOKIE = "rtevo_console"
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Guard of an ASGI application: it passes allowed requests on, and refuses others.

    Without a token, a request has to be addressed to this computer by a loopback name: pages that make a name of theirs point here are
    refused. With one, it has to come with the token: in the address once, in a cookie from then on. A request that another page has
    caused is refused in any case.

    Parameters
    ----------
    application : ASGI application
    token : str
        Empty for none.
    local : bool or None
        Whether it answers at loopback names only; None: where there is no token.
    full : callable
        Whether as many pages are open as may be: no further one is then loaded.
    """

    def __init__(
        self, application: Application, token: str = "", local: bool | None = None, full: Callable[[], bool] = lambda: False
    ) -> None:
        self.application, self.token, self.full = application, token, full
        self.local = not token if local is None else local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope.get("type") not in ("http", "websocket"):
            await self.application(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode("latin-1"))
        refusal = self._refusal(headers)
        if refusal:
            await _answer(scope, send, 403, refusal)
        elif not self.token or self._same(_cookie(headers)):
            if scope.get("type") == "http" and scope["path"] == "/" and self.full():
                await _answer(scope, send, 503, "Too many pages of this console are open: close one, and wait two minutes.")
                return
            await self.application(scope, receive, _with_policy(send))
        elif self._same(query.get("token", [""])[0]) and scope.get("type") == "http":
            cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(scope, send, 303, "", [("location", scope["path"]), ("set-cookie", cookie)])
        else:
            await _answer(scope, send, 401, "This console needs the address with the token that was printed when the session started.")

    def _same(self, told: str) -> bool:
        return hmac.compare_digest(told.encode(), self.token.encode())

    def _refusal(self, headers: dict[str, str]) -> str:
        """Return why a request is refused whatever its token; empty if it is not."""
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if self.local and not is_loopback(_parts(f"//{host}").hostname or ""):
            return "This console answers at 127.0.0.1 only."
        if origin and _parts(origin).netloc != host:
            return "Another web page sent this request."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):  # also what sends no origin: pictures, links
            return "Another web page sent this request."
        return ""


def _parts(address: str) -> SplitResult:
    """Split an address; an invalid one has no parts."""
    try:
        found = urlsplit(address)
        found.hostname  # noqa: B018 - looks whether there is one
    except ValueError:
        return urlsplit("")
    return found


def _cookie(headers: dict[str, str]) -> str:
    """Return the token that a browser has kept."""
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _with_policy(send: Send) -> Send:
    """Have every answer say that nothing may come from elsewhere, and that the address is nobody else's business."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message.get("type") == "http.response.start":
            extra = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return sent


async def _answer(scope: Scope, send: Send, status: int, text: str, headers: list[tuple[str, str]] | None = None) -> None:
    """Answer without the application."""
    if scope.get("type") == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    told = [("content-type", "text/plain; charset=utf-8"), ("referrer-policy", "no-referrer"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": [(a.encode(), b.encode()) for a, b in told]})
    await send({"type": "http.response.body", "body": text.encode()})
