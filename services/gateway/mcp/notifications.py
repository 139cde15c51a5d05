"""What has changed, told to the clients of the Model Context Protocol: lists of tools, and resources they watch.

Both ways of the protocol are served. Clients of 2026-07-28 send `subscriptions/listen`, whose answer is the stream;
those before it have a session, to which notices are sent of themselves. News is a hint to look again: a client that
reads slowly gets each kind once, and is never waited for by others.
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

MOST_WATCHED = 100  # resources of one client
_STREAMS = 1000  # of clients that listen
_FIRST = 1.0  # seconds that a subscription waits to learn what stands at an address now, if anything does
_RETRY = 1.0  # seconds until a watch that has ended is begun anew

Changes = Callable[[str], AsyncGenerator[bytes]]


@dataclass
class _Watch:
    """One watched address. `stands` is set once whatever comes is news."""

    task: asyncio.Task[None]
    stands: asyncio.Event
    watchers: int = 0


@dataclass
class _Session:
    """A session of a client before 2026-07-28: what it watches, and what it is still to be told."""

    watched: set[str] = field(default_factory=set)
    due: dict[ServerEvent, None] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, event: ServerEvent) -> None:
        """Take in what has happened, if it is of interest."""
        if not isinstance(event, ResourceUpdated) or event.uri in self.watched:
            self.due[event] = None
            self.wake.set()

    async def next(self) -> ServerEvent:
        """Return what is to be told next."""
        while not self.due:
            self.wake.clear()
            await self.wake.wait()
        event = next(iter(self.due))
        del self.due[event]
        return event


class Notifications:
    """Tells clients what has changed. `changes` yields what stands at an address, and then whatever comes to."""

    def __init__(self, directory: Directory, changes: Changes) -> None:
        self._directory = directory
        self._changes = changes
        self._bus = InMemorySubscriptionBus()
        self._watches: dict[str, _Watch] = {}
        self._sessions: dict[str, _Session] = {}
        self.listen = ListenHandler(self._bus, max_subscriptions=_STREAMS)

    async def run(self) -> None:
        """Tell for ever that the lists have changed when other units are on the bus."""
        while True:
            await self._directory.changed(self._directory.version)
            await self._bus.publish(ToolsListChanged())
            await self._bus.publish(ResourcesListChanged())

    async def close(self) -> None:
        """Watch nothing any more; those who listen hear that it has ended."""
        self.listen.close()
        tasks = [watch.task for watch in self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def watching(self, uris: Iterable[str]) -> AsyncIterator[None]:
        """Tell of changes at these addresses while the block lasts. Raises RateLimited beyond what one may watch."""
        wanted = set(uris)
        if len(wanted) > MOST_WATCHED:
            raise _too_many()
        try:
            for uri in wanted:
                self._hold(uri)
            await self._stand(wanted)
            yield
        finally:
            for uri in wanted:
                self._let_go(uri)

    # --- sessions -------------------------------------------------------------------------------------------

    async def attend(self, ident: str, session: ServerSession) -> None:
        """Tell a session what it wants to know, until the session ends and this is cancelled."""
        if ident in self._sessions:
            return  # it has said twice that it is ready
        own = self._sessions[ident] = _Session()
        leave = self._bus.subscribe(own.hear)
        try:
            while True:
                await session.send_notification(event_to_notification(await own.next(), {}))
        finally:
            leave()
            del self._sessions[ident]
            for uri in own.watched:
                self._let_go(uri)

    async def subscribe(self, ident: str, uri: str) -> None:
        """Let a session know whenever something else stands at an address. Asking again is no error."""
        own = self._sessions.get(ident)
        if own is None:
            raise InvalidRequest("the session has not said that it is ready: notifications/initialized comes first")
        if uri in own.watched:
            return
        if len(own.watched) >= MOST_WATCHED:
            raise _too_many()
        own.watched.add(uri)
        self._hold(uri)
        await self._stand((uri,))

    def unsubscribe(self, ident: str, uri: str) -> None:
        """Let a session hear no more of an address; nothing happens when it does not."""
        own = self._sessions.get(ident)
        if own and uri in own.watched:
            own.watched.remove(uri)
            own.due.pop(ResourceUpdated(uri), None)
            self._let_go(uri)

    # --- watches --------------------------------------------------------------------------------------------

    def _hold(self, uri: str) -> None:
        watch = self._watches.get(uri)
        if watch is None:
            stands = asyncio.Event()
            watch = self._watches[uri] = _Watch(asyncio.create_task(self._watch(uri, stands)), stands)
        watch.watchers += 1

    def _let_go(self, uri: str) -> None:
        watch = self._watches.get(uri)
        if watch is None:
            return
        watch.watchers -= 1
        if not watch.watchers:
            del self._watches[uri]
            watch.task.cancel()

    async def _stand(self, uris: Iterable[str]) -> None:
        """Return when a change at these addresses can no longer be missed."""
        events = [self._watches[uri].stands for uri in uris]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST):
                for event in events:
                    await event.wait()
        for event in events:
            event.set()

    async def _watch(self, uri: str, stands: asyncio.Event) -> None:
        """Tell of changes at one address, for as long as somebody wants to know; the bus may come and go."""
        while True:
            try:
                async with contextlib.aclosing(self._changes(uri)) as values:
                    async for _ in values:
                        if stands.is_set():
                            await self._bus.publish(ResourceUpdated(uri))
                        stands.set()
            except AimaError as error:
                logger.debug("a watch has ended", uri=uri, reason=error.reason)
            except Exception:
                logger.error("a watch broke", uri=uri, exc_info=True)
            stands.set()  # what comes after the gap is news
            await asyncio.sleep(_RETRY)


def _too_many() -> RateLimited:
    return RateLimited(f"one client may watch {MOST_WATCHED} resources", reason="TOO_MANY_SUBSCRIPTIONS")
