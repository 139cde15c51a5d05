"""The HTTP paths that read and watch the value at an `asms://` address.

To read a value, the gateway calls `<domain>.read`. To watch values, the gateway follows the JetStream bucket
`aima-resources`. All watchers share one consumer, which exists only while there are watchers. A slow watcher gets the
newest value and skips intermediate values.
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
from services.gateway.entrance.options import refuse_options
from services.gateway.entrance.paths import Answering, fixed_path, fixed_path_any_method
from services.gateway.events import sse
from services.gateway.events.feed import BUS_AWAY, GRACE, Feed

_BASE = "/api/v2/resource"
_SCHEME = "asms://"
_STREAM = f"KV_{BUCKET}"
_SUBJECTS = f"$KV.{BUCKET}."
_AGAIN = 1.0  # seconds until a value is read again after JetStream did not answer
_GONE = b"null"  # sent when the value of an address was deleted


class _Watched:
    """One watched address. `seq` is the value's number in the bucket; `changes` counts the accepted values."""

    def __init__(self) -> None:
        self.seq = -1
        self.value: bytes | None = None
        self.changes = 0
        self.watchers = 0
        self.changed = asyncio.Event()

    def put(self, seq: int, value: bytes | None) -> None:
        """Accept a value unless it is older than the current value."""
        if seq > self.seq:
            self.seq, self.value = seq, value
            self.changes += 1
            self.wake()

    def wake(self) -> None:
        """Wake all watchers."""
        self.changed.set()
        self.changed = asyncio.Event()


class Watching:
    """The addresses that clients of all doors currently watch."""

    def __init__(self, nc: Nats, grace: float = GRACE) -> None:
        self._js = nc.jetstream(timeout=5)
        self._feed = Feed(nc, _STREAM, self._take, self._forget, grace)
        self._watched: dict[str, _Watched] = {}
        self._closed = False

    async def run(self) -> None:
        """Follow the bucket whenever an address has watchers. Runs until cancelled."""
        await self._feed.run()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        for watched in self._watched.values():
            watched.wake()

    async def begin(self) -> None:
        """Wait until a watch can start. Raises Unavailable if JetStream does not answer."""
        with self._feed:
            await self._feed.newest()

    async def changes(self, uri: str) -> AsyncGenerator[bytes]:
        """Yield the current value at an address, if any, then each later value, as JSON. `null` means deleted.

        Raises Unavailable if JetStream does not answer at the start.
        """
        with self._feed:
            # the feed starts before the current value is read, so the feed delivers any change in between
            await self._feed.newest()
            async with self._watching(key_of(uri)) as watched:
                seen_changes, last_value = 0, b""
                while not self._closed:
                    if watched.changes == seen_changes:
                        await watched.changed.wait()
                        continue
                    seen_changes, value = watched.changes, watched.value
                    if value is not None and value != last_value:
                        last_value = value
                        yield value

    @contextlib.asynccontextmanager
    async def _watching(self, key: str) -> AsyncIterator[_Watched]:
        """Yield the watched address for a key of the bucket. The value stays current during the block."""
        watched = self._watched.setdefault(key, _Watched())
        watched.watchers += 1
        reading = asyncio.create_task(self._read_current(key, watched))
        try:
            yield watched
        finally:
            reading.cancel()
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[key]

    async def _read_current(self, key: str, watched: _Watched) -> None:
        """Read the current value. If the feed delivers a newer value meanwhile, the newer value counts."""
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
    """The routes for resources.

    The units of the domain `resource` share the prefix of these paths. `rest` serves the requests for those units.
    """

    def __init__(self, dispatcher: Dispatcher, watching: Watching, metrics: Metrics, rest: Answering) -> None:
        self._dispatcher = dispatcher
        self._watching = watching
        self._open = metrics.streams.labels("resource")
        self._rest = rest

    def routes(self) -> list[Route]:
        """Return the routes. They must come before the routes of the units."""
        return [
            fixed_path("/api/v2/resources", {"GET": self.list}),
            fixed_path_any_method(f"{_BASE}/{{uri:path}}", self.serve),
        ]

    async def list(self, request: Request) -> Response:
        """List the addresses and address templates that the caller may read."""
        principal = caller_of(request.state).principal
        readable = [
            resource
            for resource in self._dispatcher.directory.resources
            if not principal.known or principal.reaches(resource.domain, "low")
        ]
        return json({"resources": readable, "total": len(readable)})

    async def serve(self, request: Request) -> Response:
        """Read or watch the value at an address."""
        segments = bodies.segments_of(request, _BASE)
        watch = len(segments) > 1 and segments[-1] == "watch"
        uri = _uri(segments[:-1] if watch else segments)
        resource = self._dispatcher.directory.resource_of(uri)
        if resource is None:
            return await self._rest(request)
        if request.method not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        caller, unit, data = caller_of(request.state), f"{resource.domain}.read", {"uri": uri}
        if not watch:
            return json(await self._dispatcher.envelope(caller, unit, data))
        refuse_options(caller, request.url.path)
        await self._dispatcher.permitted(caller, unit, data)
        await self._watching.begin()
        sees_all = self._dispatcher.policy.sees_whole(caller.principal, resource.domain)
        return await sse.answer(self._frames(uri, None if sees_all else caller.principal.name), caller.valid)

    async def _frames(self, uri: str, owner: str | None) -> AsyncIterator[bytes]:
        """Yield the values at an address as server-sent events.

        `owner` is the only owner that the caller may see. None: the caller may see all owners.
        """
        with self._open.track_inprogress():
            async with contextlib.aclosing(self._watching.changes(uri)) as values:
                async for value in values:
                    yield sse.event(value if owner is None else _without_owners(value, owner))


def _uri(segments: list[str]) -> str:
    """Return the `asms://` address in a path. The path may omit the scheme."""
    text = "/".join(segments)
    return _SCHEME + text.removeprefix("asms:").lstrip("/")


def _without_owners(value: bytes, name: str) -> bytes:
    """Return the JSON in which every `owner` other than `name` is empty. Returns `null` if the value is not JSON."""
    # without both texts, the value has no field `owner`, not even one written with escapes
    if b"owner" not in value and b"\\u" not in value:
        return value
    try:
        return msgspec.json.encode(without_owners(msgspec.json.decode(value), name))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _GONE


def _is_marker(headers: Mapping[str, str] | None) -> bool:
    """Whether a message of the bucket deletes a value."""
    return "KV-Operation" in (headers or {})


def _line(value: bytes) -> bytes:
    """Return the JSON on one line, as server-sent events require. Returns `null` if the value is not JSON."""
    if b"\n" not in value and b"\r" not in value:
        return value
    try:
        return msgspec.json.format(value, indent=-1)
    except (msgspec.MsgspecError, ValueError):
        return _GONE
