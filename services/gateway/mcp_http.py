"""`/mcp`: the Model Context Protocol over streamable HTTP.

The gate has let in who asks; what they are handed stands in the query string: `/mcp?read_only=true&only=service,model`.
A session belongs to the key, or without one to the address, that began it: to others it is not there.
"""

from __future__ import annotations

import asyncio

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from aima_core.errors import PayloadTooLarge, Unavailable
from services.gateway.asking import Asking, Caller
from services.gateway.gate import caller_of
from services.gateway.mcp_api import Context, McpServer, Visit
from services.gateway.mcp_news import Changes
from services.gateway.mcp_tools import mode_from

_IDLE = 1800.0  # seconds without a request after which a session ends
_SESSIONS = 2000  # at once
_DRAIN = 5.0  # seconds that calls under way get when the gateway ends


class McpDoor:
    """The door, from `open` to `close`. An ASGI application."""

    def __init__(self, asking: Asking, changes: Changes, body_limit: int) -> None:
        self._mcp = McpServer(asking, changes, _who)
        self._limit = body_limit
        # the gate knows better which hosts are ours
        self._manager = StreamableHTTPSessionManager(
            self._mcp.server, session_idle_timeout=_IDLE, max_sessions=_SESSIONS, max_request_body_size=body_limit
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[object]] = set()
        self._ready, self._stop = asyncio.Event(), asyncio.Event()

    def route(self) -> Route:
        """Return the route; the protocol decides about methods."""
        return Route("/mcp", self)

    async def open(self) -> None:
        """Take sessions from now on."""
        self._tasks = [asyncio.create_task(self._serve()), asyncio.create_task(self._mcp.news.run())]
        await self._ready.wait()

    async def close(self) -> None:
        """Take nothing more; calls under way end, or are cut after a while; sessions and those who listen are ended."""
        self._stop.set()
        await self._mcp.news.close()
        if self._calls:
            await asyncio.wait(self._calls, timeout=_DRAIN)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self._stop.is_set():
            raise Unavailable("the gateway is ending", reason="STOPPING")
        request = Request(scope)
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told) > self._limit:
            raise PayloadTooLarge(f"the body is larger than the {self._limit} bytes that are taken", limit=self._limit)
        query = request.query_params
        request.state.mode = mode_from(query.get("read_only", ""), query.get("only", ""))
        owner = _owner(caller_of(request.state))
        scope["user"] = AuthenticatedUser(
            AccessToken(token="", client_id=owner, scopes=[])
        )  # whom a session is bound to
        task = asyncio.current_task()
        if task and request.method == "POST":
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        await self._manager.handle_request(scope, receive, send)

    async def _serve(self) -> None:
        """Hold the sessions; they have to be ended by the task that began them."""
        async with self._manager.run():
            self._ready.set()
            await asyncio.Event().wait()


def _who(ctx: Context) -> Visit:
    request: Request | None = ctx.request
    assert request, "over HTTP every message comes with its request"
    session = request.headers.get(MCP_SESSION_ID_HEADER, "")
    return Visit(caller_of(request.state), request.state.mode, session)


def _owner(caller: Caller) -> str:
    return caller.principal.key_id or f"at {caller.address}"
