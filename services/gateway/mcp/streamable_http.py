"""`/mcp`: the Model Context Protocol over streamable HTTP.

The gate has checked the caller's key. The query string selects the tools: `/mcp?read_only=true&only=service,model`.
A session belongs to the key that began it. Without a key, the session belongs to the client's address. Other callers
cannot use the session.
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
from services.gateway.entrance.options import refuse_in_query
from services.gateway.mcp.api import Context, McpClient, McpServer
from services.gateway.mcp.notifications import Changes
from services.gateway.mcp.tools import mode_from

_IDLE = 1800.0  # a session ends after this many seconds without a request
_SESSIONS = 2000  # the most sessions of all callers at once
SESSIONS_EACH = 100  # the most sessions of one key, or of one address without a key
STREAMS_EACH = 100  # the most streams of notifications of one key or address
_RETRY = 60  # seconds in Retry-After for a caller with too many sessions or streams
_DRAIN = 5.0  # seconds that calls under way get to finish when the gateway ends


@dataclass
class _Session:
    """A session's owner, the number of its requests under way, and the monotonic time of its last request."""

    owner: str
    under_way: int = 0
    used: float = field(default_factory=time.monotonic)


class Sessions:
    """Limits each owner to `SESSIONS_EACH` sessions. A further session replaces the owner's longest idle session.

    The SDK limits only the sum of all sessions, so one client could use up the sessions of all others.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}

    def begin(self, owner: str) -> tuple[str, str]:
        """Add a session. Returns its temporary id, and the id of the session that it replaces, or "".

        Raises RateLimited if the owner has too many sessions and all of them have requests under way.
        """
        now = time.monotonic()
        self._sessions = {
            ident: session
            for ident, session in self._sessions.items()
            if session.under_way or session.used + _IDLE > now
        }
        own = {ident: session for ident, session in self._sessions.items() if session.owner == owner}
        replaced = ""
        if len(own) >= SESSIONS_EACH:
            idle = [ident for ident, session in own.items() if not session.under_way]
            if not idle:
                raise _too_many(f"{SESSIONS_EACH} sessions", "TOO_MANY_SESSIONS")
            replaced = min(idle, key=lambda ident: own[ident].used)
            del self._sessions[replaced]
        ident = token(8)
        self._sessions[ident] = _Session(owner)
        return ident, replaced

    def name(self, temporary_id: str, ident: str) -> None:
        """Replace a session's temporary id with the id that the SDK gave it."""
        self._sessions[ident] = self._sessions.pop(temporary_id)

    def forget(self, ident: str, owner: str) -> None:
        """Remove a session if it belongs to the owner. Idempotent."""
        if ident in self._sessions and self._sessions[ident].owner == owner:
            del self._sessions[ident]

    @contextlib.contextmanager
    def in_use(self, ident: str, owner: str) -> Iterator[None]:
        """Protect a session of the owner during the block: no new session may replace it."""
        session = self._sessions.get(ident)
        if session is None or session.owner != owner:
            yield
            return
        session.under_way += 1
        try:
            yield
        finally:
            session.under_way -= 1
            session.used = time.monotonic()


class McpDoor:
    """The ASGI application behind `/mcp`. Serves between `open` and `close`."""

    def __init__(self, dispatcher: Dispatcher, changes: Changes, body_limit: int) -> None:
        self._mcp = McpServer(dispatcher, changes, _find_client)
        self._limit = body_limit
        # the gate checks the host, so the SDK's own check stays off
        self._manager = StreamableHTTPSessionManager(
            self._mcp.server, session_idle_timeout=_IDLE, max_sessions=_SESSIONS, max_request_body_size=body_limit
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[object]] = set()
        self._sessions = Sessions()
        self._streams: Counter[str] = Counter()  # number of open streams by owner
        self._ready, self._stop = asyncio.Event(), asyncio.Event()

    def route(self) -> Route:
        """Return the route. The SDK decides which HTTP methods are allowed."""
        return Route("/mcp", self)

    async def open(self) -> None:
        """Start to accept sessions."""
        self._tasks = [asyncio.create_task(self._serve()), asyncio.create_task(self._mcp.news.run())]
        await self._ready.wait()

    async def close(self) -> None:
        """Refuse new requests and end all streams. Waits at most 5 s for calls under way, then ends all sessions."""
        self._stop.set()
        await self._mcp.news.close()
        if self._calls:
            await asyncio.wait(self._calls, timeout=_DRAIN)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises Unavailable, PayloadTooLarge, RateLimited."""
        if self._stop.is_set():
            raise Unavailable("the gateway is stopping; try again later", reason="STOPPING")
        request = Request(scope)
        content_length = request.headers.get("content-length", "")
        if content_length.isdecimal() and int(content_length) > self._limit:
            raise PayloadTooLarge(f"the body is larger than the limit of {self._limit} bytes", limit=self._limit)
        query = request.query_params
        refuse_in_query(query)
        request.state.mode = mode_from(query.get("read_only", ""), query.get("only", ""))
        owner = caller_of(request.state).owner
        # the SDK gives the session to this user
        scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=owner, scopes=[]))
        task = asyncio.current_task()
        if task and request.method == "POST":
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        request.state.disconnected = asyncio.get_running_loop().create_future()
        try:
            with self._listening(request, owner):
                await self._in_session(request, owner, receive, send)
        finally:
            request.state.disconnected.set_result(None)

    @contextlib.contextmanager
    def _listening(self, request: Request, owner: str) -> Iterator[None]:
        """Count a stream of notifications during the block. Raises RateLimited if the owner has too many."""
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
        """Serve a request, and record the session that it begins or ends. Raises RateLimited."""
        session_id, replaced = request.headers.get(MCP_SESSION_ID_HEADER, ""), ""
        begins_session = _begins_session(request)
        if begins_session:
            session_id, replaced = self._sessions.begin(owner)

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                status, ident = message["status"], Headers(raw=message["headers"]).get(MCP_SESSION_ID_HEADER)
                if begins_session and ident and status < 400:
                    self._sessions.name(session_id, ident)
                elif status == 404 or (request.method == "DELETE" and status < 400):
                    self._sessions.forget(session_id, owner)
            await send(message)

        with self._sessions.in_use(session_id, owner):
            try:
                if replaced:
                    await self._end(request, replaced)
                await self._manager.handle_request(request.scope, receive, send_and_record)
            finally:
                if begins_session:
                    self._sessions.forget(session_id, owner)  # a session that has begun now has the SDK's id

    async def _end(self, request: Request, ident: str) -> None:
        """End another session of the caller. Sends DELETE to the SDK, as a client does to end a session."""
        headers = [(MCP_SESSION_ID_HEADER.encode(), ident.encode())]

        async def receive_nothing() -> Message:
            return {"type": "http.request"}

        async def discard(message: Message) -> None:
            pass

        await self._manager.handle_request(
            {**request.scope, "method": "DELETE", "headers": headers}, receive_nothing, discard
        )

    async def _serve(self) -> None:
        """Run the SDK's session manager in one task, because it must be closed by the task that opened it."""
        async with self._manager.run():
            self._ready.set()
            await asyncio.Event().wait()


def _find_client(ctx: Context) -> McpClient:
    request: Request | None = ctx.request
    assert request, "over HTTP every message comes with its request"
    session = request.headers.get(MCP_SESSION_ID_HEADER, "")
    return McpClient(caller_of(request.state), request.state.mode, session, request.state.disconnected)


def _begins_session(request: Request) -> bool:
    """Whether a request begins a session: the request names no session, and its protocol version has sessions."""
    version = request.headers.get(MCP_PROTOCOL_VERSION_HEADER)
    return MCP_SESSION_ID_HEADER not in request.headers and (version is None or version in HANDSHAKE_PROTOCOL_VERSIONS)


def _too_many(limit: str, reason: str) -> RateLimited:
    return RateLimited(f"one key or address may have at most {limit} at once", reason=reason, retry_after=_RETRY)
