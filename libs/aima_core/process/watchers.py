"""Queues of committed events, by stream. Requests and domains use them to watch events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from aima_core.store.records import Recorded

_ALL = "*"  # key of the watchers of all streams; no stream has this name, because a stream's name contains a slash


class Watchers:
    """The open queues of one domain."""

    def __init__(self) -> None:
        # dicts are used as sets, because they keep their order: the same log always leads to the same order of work
        self._queues: dict[str, dict[asyncio.Queue[Sequence[Recorded]], None]] = {}

    @contextlib.contextmanager
    def watch(self, streams: Sequence[str]) -> Iterator[asyncio.Queue[Sequence[Recorded]]]:
        """Yield a queue of the events that are committed to these streams from now on. No streams means all streams.

        The queue gets one entry per commit.
        """
        queue: asyncio.Queue[Sequence[Recorded]] = asyncio.Queue()
        streams = streams or (_ALL,)
        for stream in streams:
            self._queues.setdefault(stream, {})[queue] = None
        try:
            yield queue
        finally:
            for stream in streams:
                self._queues[stream].pop(queue, None)
                if not self._queues[stream]:
                    del self._queues[stream]

    def notify(self, records: Sequence[Recorded]) -> None:
        """Put the events of a commit into the queues that watch their streams."""
        by_queue: dict[asyncio.Queue[Sequence[Recorded]], list[Recorded]] = {}
        for record in records:
            for queue in self._queues.get(record.stream, {}) | self._queues.get(_ALL, {}):
                by_queue.setdefault(queue, []).append(record)
        for queue, news in by_queue.items():
            queue.put_nowait(news)
