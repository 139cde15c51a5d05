"""Resources at the door: what stands at an `asms://` address, and what comes to stand there.

Reading asks `<domain>.read`. Watching looks at the JetStream bucket `aima-resources`, through one consumer for all who
watch, while anybody does; of an address whose watchers read slowly, each gets the newest value and not those in
between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

import msgspec
import nats.js.errors
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aima_core.process.resource_bucket import BUCKET
from aima_core.units import key_of
from services.gateway.entrance import bodies
from services.gateway.entrance.access import without_owners
from services.gateway.entrance.dispatch import Dispatcher
from services.gateway.entrance.error_bodies import json
from services.gateway.entrance.gate import caller_of
from services.gateway.entrance.metrics import Metrics
from services.gateway.entrance.paths import Answering, fixed_path, fixed_path_any_method
from services.gateway.events import sse
from services.gateway.events.feed import BUS_AWAY, GRACE, Feed

_BASE = "/api/v2/resource"
_SCHEME = "asms://"
_STREAM = f"KV_{BUCKET}"
_SUBJECTS = f"$KV.{BUCKET}."
_AGAIN = 1.0  # seconds until a value is asked for again that JetStream did not tell
_GONE = b"null"  # what stands where nothing stands any more


class _Watched:
    """One address that somebody watches. `seq` is the value's number in the bucket, `changes` counts what was taken."""

    def __init__(self) -> None:
        self.seq = -1
        self.value: bytes | None = None
        self.changes = 0
        self.watchers = 0
        self.moved = asyncio.Event()

    def put(self, seq: int, value: bytes | None) -> None:
        """Take a value, unless a newer one is known."""
        if seq > self.seq:
            self.seq, self.value = seq, value
            self.changes += 1
            self.wake()

    def wake(self) -> None:
        """Let those who wait look again."""
        self.moved.set()
        self.moved = asyncio.Event()


class Watching:
    """The addresses that are watched right now, by whatever door."""

    def __init__(self, nc: Nats, grace: float = GRACE) -> None:
        self._js = nc.jetstream(timeout=5)
        self._feed = Feed(nc, _STREAM, self._take, self._forget, grace)
        self._watched: dict[str, _Watched] = {}
        self._closed = False

    async def run(self) -> None:
        """Keep up with the bucket whenever somebody watches, for ever."""
        await self._feed.run()

    def close(self) -> None:
        """End all watching."""
        self._closed = True
        for watched in self._watched.values():
            watched.wake()

    async def begin(self) -> None:
        """Return when watching can begin. Raises Unavailable while JetStream is away."""
        with self._feed:
            await self._feed.found()

    async def changes(self, uri: str) -> AsyncGenerator[bytes]:
        """Yield what stands at an address, if anything does, and whatever comes to stand there: JSON, `null` for none.

        Raises Unavailable while JetStream is away at the beginning.
        """
        with self._feed:
            await self._feed.found()  # only then to look: what comes to stand there later is delivered
            async with self._watching(key_of(uri)) as watched:
                seen, told = 0, b""
                while not self._closed:
                    if watched.changes == seen:
                        await watched.moved.wait()
                        continue
                    seen, value = watched.changes, watched.value
                    if value is not None and value != told:
                        told = value
                        yield value

    @contextlib.asynccontextmanager
    async def _watching(self, key: str) -> AsyncIterator[_Watched]:
        """Give what stands at a key, kept up while the block lasts."""
        watched = self._watched.setdefault(key, _Watched())
        watched.watchers += 1
        looking = asyncio.create_task(self._look(key, watched))
        try:
            yield watched
        finally:
            looking.cancel()
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[key]

    async def _look(self, key: str, watched: _Watched) -> None:
        """Learn what stands there now; what comes meanwhile is newer and wins."""
        while True:
            try:
                message = await self._js.get_last_msg(_STREAM, _SUBJECTS + key)
            except nats.js.errors.NotFoundError:
                return
            except BUS_AWAY:
                await asyncio.sleep(_AGAIN)
                continue
            if not _is_marker(message.headers):
                watched.put(message.seq or 0, _line(message.data or b""))
            return

    def _take(self, seq: int, message: Msg) -> None:
        watched = self._watched.get(message.subject.removeprefix(_SUBJECTS))
        if watched:
            watched.put(seq, _GONE if _is_marker(message.headers) else _line(message.data))

    def _forget(self) -> None:
        for watched in self._watched.values():
            watched.seq = -1


class ResourceApi:
    """The doors to them. `rest` answers what is no address: the units of the domain `resource` share the path."""

    def __init__(self, asking: Dispatcher, watching: Watching, metrics: Metrics, rest: Answering) -> None:
        self._asking = asking
        self._watching = watching
        self._open = metrics.streams.labels("resource")
        self._rest = rest

    def routes(self) -> list[Route]:
        """Return the routes; they come before those of the units."""
        return [
            fixed_path("/api/v2/resources", {"GET": self.list}),
            fixed_path_any_method(f"{_BASE}/{{uri:path}}", self.serve),
        ]

    async def list(self, request: Request) -> Response:
        """List the addresses and templates of addresses, as far as the caller may read them."""
        who = caller_of(request.state).principal
        found = [
            resource
            for resource in self._asking.directory.resources
            if not who.known or who.reaches(resource.domain, "low")
        ]
        return json({"resources": found, "total": len(found)})

    async def serve(self, request: Request) -> Response:
        """Read or watch what an address stands for."""
        segments = bodies.segments_of(request, _BASE)
        watch = len(segments) > 1 and segments[-1] == "watch"
        uri = _uri(segments[:-1] if watch else segments)
        found = self._asking.directory.resource_of(uri)
        if found is None:
            return await self._rest(request)
        if request.method not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        caller, unit, data = caller_of(request.state), f"{found.domain}.read", {"uri": uri}
        if not watch:
            return json(await self._asking.envelope(caller, unit, data))
        await self._asking.permitted(caller, unit, data)
        await self._watching.begin()
        whole = self._asking.policy.sees_whole(caller.principal, found.domain)
        return await sse.answer(self._frames(uri, None if whole else caller.principal.name), caller.valid)

    async def _frames(self, uri: str, only: str | None) -> AsyncIterator[bytes]:
        """Yield what stands at an address, as events; `only`: who alone may stand there as an owner, None: anybody."""
        with self._open.track_inprogress():
            async with contextlib.aclosing(self._watching.changes(uri)) as values:
                async for value in values:
                    yield sse.event(value if only is None else _without_owners(value, only))


def _uri(segments: list[str]) -> str:
    """Return the address that a path spells, with its scheme or without."""
    text = "/".join(segments)
    return _SCHEME + text.removeprefix("asms:").lstrip("/")


def _without_owners(value: bytes, name: str) -> bytes:
    """Return JSON that tells no owner but `name`, as it came where it tells none; `null` for what is no JSON."""
    if b"owner" not in value and b"\\u" not in value:  # unless it is written with escapes, the word stands there
        return value
    try:
        return msgspec.json.encode(without_owners(msgspec.json.decode(value), name))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _GONE


def _is_marker(headers: Mapping[str, str] | None) -> bool:
    """Whether a message of the bucket says that there is nothing any more."""
    return "KV-Operation" in (headers or {})


def _line(value: bytes) -> bytes:
    """Return JSON as one line, as an event of a stream has to be; `null` for what is no JSON."""
    if b"\n" not in value and b"\r" not in value:
        return value
    try:
        return msgspec.json.format(value, indent=-1)
    except (msgspec.MsgspecError, ValueError):
        return _GONE
