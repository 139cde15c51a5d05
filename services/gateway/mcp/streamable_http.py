"""`/mcp`: the Model Context Protocol over streamable HTTP.

The gate has let in who asks; what they are handed stands in the query string: `/mcp?read_only=true&only=service,model`.
A session belongs to the key, or without one to the address, that began it: to others it is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from aima_core.call import token
from aima_core.errors import PayloadTooLarge, RateLimited, Unavailable
from services.gateway.entrance.dispatch import Dispatcher
from services.gateway.entrance.gate import caller_of
from services.gateway.mcp.api import Context, McpClient, McpServer
from services.gateway.mcp.notifications import Changes
from services.gateway.mcp.tools import mode_from

_IDLE = 1800.0  # seconds without a request after which a session ends
_SESSIONS = 2000  # at once
SESSIONS_EACH = 100  # of one key, or of one address without a key
STREAMS_EACH = 100  # on which one of them listens
_RETRY = 60  # seconds after which somebody who has too many of them may try again
_DRAIN = 5.0  # seconds that calls under way get when the gateway ends


@dataclass
class _Session:
    """Whose a session is, how many of its requests are under way, and when the last of them began or ended."""

    owner: str
    under_way: int = 0
    used: float = field(default_factory=time.monotonic)


class Sessions:
    """The sessions that there are, as far as their requests tell; an owner has so many, of which the idlest give way.

    The SDK counts all sessions together, so that one client could take every other's.
    """

    def __init__(self) -> None:
        self._held: dict[str, _Session] = {}

    def begin(self, owner: str) -> tuple[str, str]:
        """Count one more; return what it goes by until it has an id, and the id of the one that has to end, or "".

        Raises RateLimited when the owner has too many, and requests of all of them are under way.
        """
        now = time.monotonic()
        self._held = {ident: one for ident, one in self._held.items() if one.under_way or one.used + _IDLE > now}
        own = {ident: one for ident, one in self._held.items() if one.owner == owner}
        ending = ""
        if len(own) >= SESSIONS_EACH:
            idle = [ident for ident, one in own.items() if not one.under_way]
            if not idle:
                raise _too_many(f"{SESSIONS_EACH} sessions", "TOO_MANY_SESSIONS")
            ending = min(idle, key=lambda ident: own[ident].used)
            del self._held[ending]
        ident = token(8)
        self._held[ident] = _Session(owner)
        return ident, ending

    def name(self, given: str, ident: str) -> None:
        """Know a session by the id that it has got."""
        self._held[ident] = self._held.pop(given)

    def forget(self, ident: str, owner: str) -> None:
        """Count a session no more; nothing happens when the owner has none of this name."""
        if ident in self._held and self._held[ident].owner == owner:
            del self._held[ident]

    @contextlib.contextmanager
    def in_use(self, ident: str, owner: str) -> Iterator[None]:
        """Keep a session, if it is one of the owner's, from giving way during a block."""
        one = self._held.get(ident)
        if one is None or one.owner != owner:
            yield
            return
        one.under_way += 1
        try:
            yield
        finally:
            one.under_way -= 1
            one.used = time.monotonic()


class McpDoor:
    """The door, from `open` to `close`. An ASGI application."""

    def __init__(self, asking: Dispatcher, changes: Changes, body_limit: int) -> None:
        self._mcp = McpServer(asking, changes, _who)
        self._limit = body_limit
        # the gate knows better which hosts are ours
        self._manager = StreamableHTTPSessionManager(
            self._mcp.server, session_idle_timeout=_IDLE, max_sessions=_SESSIONS, max_request_body_size=body_limit
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[object]] = set()
        self._sessions = Sessions()
        self._streams: Counter[str] = Counter()  # by whom they are listened on
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
        owner = caller_of(request.state).owner
        scope["user"] = AuthenticatedUser(
            AccessToken(token="", client_id=owner, scopes=[])
        )  # whom a session is bound to
        task = asyncio.current_task()
        if task and request.method == "POST":
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        request.state.gone = asyncio.get_running_loop().create_future()
        try:
            with self._listening(request, owner):
                await self._in_session(request, owner, receive, send)
        finally:
            request.state.gone.set_result(None)

    @contextlib.contextmanager
    def _listening(self, request: Request, owner: str) -> Iterator[None]:
        """Count a stream of news during a block. Raises RateLimited when the owner has too many."""
        if request.headers.get(MCP_METHOD_HEADER) != "subscriptions/listen":
            yield
            return
        if self._streams[owner] >= STREAMS_EACH:
            raise _too_many(f"{STREAMS_EACH} streams", "TOO_MANY_STREAMS")
        self._streams[owner] += 1
        try:
            yield
        finally:
            self._streams[owner] -= 1
            if not self._streams[owner]:
                del self._streams[owner]

    async def _in_session(self, request: Request, owner: str, receive: Receive, send: Send) -> None:
        """Have a request served; learn of the session that it begins or ends. Raises RateLimited."""
        known, ending = request.headers.get(MCP_SESSION_ID_HEADER, ""), ""
        begins = _begins_session(request)
        if begins:
            known, ending = self._sessions.begin(owner)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                status, ident = message["status"], Headers(raw=message["headers"]).get(MCP_SESSION_ID_HEADER)
                if begins and ident and status < 400:
                    self._sessions.name(known, ident)
                elif status == 404 or (request.method == "DELETE" and status < 400):
                    self._sessions.forget(known, owner)
            await send(message)

        with self._sessions.in_use(known, owner):
            try:
                if ending:
                    await self._end(request, ending)
                await self._manager.handle_request(request.scope, receive, noting)
            finally:
                if begins:
                    self._sessions.forget(known, owner)  # by its id it stays, if it has got one

    async def _end(self, request: Request, ident: str) -> None:
        """End a session of who makes a request, as its client would."""
        headers = [(MCP_SESSION_ID_HEADER.encode(), ident.encode())]

        async def nothing() -> Message:
            return {"type": "http.request"}

        async def unheard(message: Message) -> None:
            pass

        await self._manager.handle_request({**request.scope, "method": "DELETE", "headers": headers}, nothing, unheard)

    async def _serve(self) -> None:
        """Hold the sessions; they have to be ended by the task that began them."""
        async with self._manager.run():
            self._ready.set()
            await asyncio.Event().wait()


def _who(ctx: Context) -> McpClient:
    request: Request | None = ctx.request
    assert request, "over HTTP every message comes with its request"
    session = request.headers.get(MCP_SESSION_ID_HEADER, "")
    return McpClient(caller_of(request.state), request.state.mode, session, request.state.gone)


def _begins_session(request: Request) -> bool:
    """Whether a request can only begin a session: it names none, and the protocol is one that has them."""
    version = request.headers.get(MCP_PROTOCOL_VERSION_HEADER)
    return MCP_SESSION_ID_HEADER not in request.headers and (version is None or version in HANDSHAKE_PROTOCOL_VERSIONS)


def _too_many(what: str, reason: str) -> RateLimited:
    return RateLimited(f"one key or address may have {what} at once", reason=reason, retry_after=_RETRY)
