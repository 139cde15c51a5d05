"""Notifies MCP clients when the list of tools, the list of resources or a watched resource changes.

A client of protocol version 2026-07-28 sends the request `subscriptions/listen`, and its response is a stream of
notifications. A client of an older version has a session, which gets the notifications. A notification names the
change, but has no value. So equal notifications for a slow client are merged, and the client never delays others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from mcp.server.session import ServerSession
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.subscriptions import (
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
    event_to_notification,
)

from aima_core.bus.directory import Directory
from aima_core.errors import AimaError, InvalidRequest, RateLimited
from aima_core.structured_logs import logger

MOST_WATCHED = 100  # the most resources that one client may watch
_STREAMS = 1000  # the most streams of notifications of all clients together
_FIRST = 1.0  # seconds that a subscription waits for an address's current value; the address may have none
_RETRY = 1.0  # seconds until a watch that ended is started again

Changes = Callable[[str], AsyncGenerator[bytes]]


@dataclass
class _Watch:
    """One watched address. `ready` is set when the current value was read. Every later value is a change."""

    task: asyncio.Task[None]
    ready: asyncio.Event
    watchers: int = 0


@dataclass
class _Session:
    """A session of a client with an older protocol version.

    `watched` has the addresses that the session watches; `due` has the notifications that are not sent yet.
    """

    watched: set[str] = field(default_factory=set)
    due: dict[ServerEvent, None] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def enqueue(self, event: ServerEvent) -> None:
        """Queue a notification. Ignores a notification about an address that the session does not watch."""
        if not isinstance(event, ResourceUpdated) or event.uri in self.watched:
            self.due[event] = None
            self.wake.set()

    async def next(self) -> ServerEvent:
        """Wait for the next notification, and return it."""
        while not self.due:
            self.wake.clear()
            await self.wake.wait()
        event = next(iter(self.due))
        del self.due[event]
        return event


class Notifications:
    """Sends notifications to clients. `changes(uri)` yields the current value of an address and each later value."""

    def __init__(self, directory: Directory, changes: Changes) -> None:
        self._directory = directory
        self._changes = changes
        self._bus = InMemorySubscriptionBus()
        self._watches: dict[str, _Watch] = {}
        self._sessions: dict[str, _Session] = {}
        self.listen = ListenHandler(self._bus, max_subscriptions=_STREAMS)

    async def run(self) -> None:
        """Notify clients whenever the units on the bus change. Runs until cancelled."""
        while True:
            await self._directory.changed(self._directory.version)
            await self._bus.publish(ToolsListChanged())
            await self._bus.publish(ResourcesListChanged())

    async def close(self) -> None:
        """End all watches and all streams of notifications."""
        self.listen.close()
        tasks = [watch.task for watch in self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def watching(self, uris: Iterable[str]) -> AsyncIterator[None]:
        """Notify clients of changes at these addresses during the block.

        Raises RateLimited for more than `MOST_WATCHED` addresses.
        """
        watched = set(uris)
        if len(watched) > MOST_WATCHED:
            raise _too_many()
        try:
            for uri in watched:
                self._retain(uri)
            await self._wait_until_ready(watched)
            yield
        finally:
            for uri in watched:
                self._release(uri)

    # --- sessions -------------------------------------------------------------------------------------------

    async def serve_session(self, session_id: str, session: ServerSession) -> None:
        """Send a session its notifications. Runs until cancelled at the end of the session."""
        if session_id in self._sessions:
            return  # the client has sent notifications/initialized twice
        state = self._sessions[session_id] = _Session()
        unsubscribe = self._bus.subscribe(state.enqueue)
        try:
            while True:
                await session.send_notification(event_to_notification(await state.next(), {}))
        finally:
            unsubscribe()
            del self._sessions[session_id]
            for uri in state.watched:
                self._release(uri)

    async def subscribe(self, session_id: str, uri: str) -> None:
        """Start notifying a session of changes at an address. Idempotent.

        Raises InvalidRequest if the session is not initialized, and RateLimited if it watches too many addresses.
        """
        state = self._sessions.get(session_id)
        if state is None:
            raise InvalidRequest("the session is not initialized yet: send notifications/initialized first")
        if uri in state.watched:
            return
        if len(state.watched) >= MOST_WATCHED:
            raise _too_many()
        state.watched.add(uri)
        self._retain(uri)
        await self._wait_until_ready((uri,))

    def unsubscribe(self, session_id: str, uri: str) -> None:
        """Stop notifying a session of changes at an address. Idempotent."""
        state = self._sessions.get(session_id)
        if state and uri in state.watched:
            state.watched.remove(uri)
            state.due.pop(ResourceUpdated(uri), None)
            self._release(uri)

    # --- watches --------------------------------------------------------------------------------------------

    def _retain(self, uri: str) -> None:
        watch = self._watches.get(uri)
        if watch is None:
            ready = asyncio.Event()
            watch = self._watches[uri] = _Watch(asyncio.create_task(self._watch(uri, ready)), ready)
        watch.watchers += 1

    def _release(self, uri: str) -> None:
        watch = self._watches.get(uri)
        if watch is None:
            return
        watch.watchers -= 1
        if not watch.watchers:
            del self._watches[uri]
            watch.task.cancel()

    async def _wait_until_ready(self, uris: Iterable[str]) -> None:
        """Wait at most 1 s until the current values at these addresses are read. Later changes are then detected."""
        events = [self._watches[uri].ready for uri in uris]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST):
                for event in events:
                    await event.wait()
        for event in events:
            event.set()

    async def _watch(self, uri: str, ready: asyncio.Event) -> None:
        """Notify clients of changes at one address until cancelled. Retries while the bus is gone."""
        while True:
            try:
                async with contextlib.aclosing(self._changes(uri)) as values:
                    async for _ in values:
                        if ready.is_set():
                            await self._bus.publish(ResourceUpdated(uri))
                        ready.set()
            except AimaError as error:
                logger.debug("a watch of a resource ended; it is started again", uri=uri, reason=error.reason)
            except Exception:
                logger.error("a watch of a resource failed with an unexpected error", uri=uri, exc_info=True)
            ready.set()  # a value may have changed during the gap
            await asyncio.sleep(_RETRY)


def _too_many() -> RateLimited:
    return RateLimited(f"a client may watch at most {MOST_WATCHED} resources", reason="TOO_MANY_SUBSCRIPTIONS")
