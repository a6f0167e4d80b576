"""The web server of the console's process."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, Response
from nicegui import Client, ui
from pydantic import BaseModel, Field

from rtevo.console.desk import Desk
from rtevo.console.guard import Guard
from rtevo.console.page import Page
from rtevo.wire import is_loopback

if TYPE_CHECKING:
    from rtevo.session.context import Context

__all__ = ["serve"]

LOOK_S = 0.25  # interval between reads of the log
FAREWELL_S = 1.5  # for what was drawn last to reach them
PART_S = 3.0  # for browsers to draw the end
MOST_PAGES = 60  # open at a time, or loaded and given up less than that long ago
PATIENCE_S = 120.0  # a browser that is away for so long has to load its page again


class Press(BaseModel):
    """Something that was pressed on a page: it comes again and again until it is acknowledged."""

    id: str = Field(max_length=64)
    client: str = Field(max_length=64)
    action: str = Field(max_length=16)
    text: str = Field(max_length=4000)
    age_ms: float = Field(ge=0, le=1e9)  # how long ago that was


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave Ctrl-C to the supervisor."""
        yield


def serve(context: Context) -> None:
    """Serve the console until the session is over."""
    logging.getLogger("nicegui").handlers = logging.getLogger("uvicorn").handlers = [_Quiet(context)]
    with closing(Desk(context)) as desk:
        asyncio.run(_serve(context, desk))


class _Quiet(logging.Handler):
    """Handler that logs the web server's warnings with the session's, and not to the terminal."""

    def __init__(self, context: Context) -> None:
        super().__init__(logging.WARNING)
        self.context = context

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the record on."""
        self.context.tell("log", level="DEBUG", text=f"console: {record.getMessage()}")


def _application(desk: Desk, looking: dict[str, Page]) -> Guard:
    """Make the application; `looking` has the pages that are open."""
    taken: deque[str] = deque(maxlen=1000)
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @application.get("/picture/{generation}/{candidate}")
    def picture(generation: int, candidate: int, small: bool = False) -> Response:
        found = desk.picture(generation, candidate, small=small)
        if found is None:
            return Response(status_code=404)
        return Response(found, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @application.get("/placement/{part}/{attempt}")
    def placement(part: int, attempt: int) -> Response:
        found = desk.overlay(part, attempt)
        return Response(status_code=404) if found is None else Response(found, media_type="image/png")

    @application.get("/map/{kind}")
    def live_map(kind: str) -> Response:
        found = desk.maps.picture(kind)
        return Response(status_code=404) if found is None else Response(found, media_type="image/png")

    @application.get("/alive/{client}", status_code=204)
    def alive(client: str) -> Response:
        """Answer a page that looks for its server; 404 where this is another one, that does not know it."""
        return Response(status_code=204 if client in looking else 404)

    @application.post("/press", status_code=204)
    def press(pressed: Press) -> Response:
        """Process what was pressed on a page, once; 404 if the page must be loaded again first."""
        page = looking.get(pressed.client)
        if page is None:
            return Response(status_code=404)
        if pressed.id not in taken:
            taken.append(pressed.id)
            page.press(pressed.action, pressed.text, desk.ago_ns(pressed.age_ms))
        return Response(status_code=204)

    @ui.page("/")
    def page(client: Client) -> None:
        looking[client.id] = Page(desk)
        client.on_delete(lambda: looking.pop(client.id, None))

    ui.run_with(
        application, title="rtevo", dark=True, show_welcome_message=False, tailwind=False, gzip_middleware_factory=None,
        reconnect_timeout=PATIENCE_S,
    )  # fmt: skip
    local = is_loopback(desk.context.config.console.address)
    return Guard(application, desk.plan.token, local, full=lambda: len(Client.instances) >= MOST_PAGES)


async def _serve(context: Context, desk: Desk) -> None:
    settings, looking = context.config.console, dict[str, Page]()
    again = bool(context.clock.get("started_ns"))  # there was one before, and a browser may be on its way back
    config = uvicorn.Config(
        _application(desk, looking), settings.address, settings.port, log_config=None, access_log=False, timeout_graceful_shutdown=1
    )  # fmt: skip
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.02)
    context.ready()
    while not serving.done() and not desk.closed:
        desk.refresh()
        await asyncio.to_thread(desk.maps.step)
        await asyncio.sleep(LOOK_S)
    desk.refresh()
    for _ in range(round(PART_S / LOOK_S)):
        if not desk.ends or ((looking or not again) and all(page.ended for page in looking.values())):
            break
        await asyncio.sleep(LOOK_S)
    await asyncio.sleep(FAREWELL_S if desk.ends else LOOK_S)  # the next run's page comes at the same address
    server.should_exit = True
    with suppress(asyncio.CancelledError):
        await serving
