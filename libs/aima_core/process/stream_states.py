"""Keeps the states and versions of a domain's streams in memory: the decided states, and the committed states.

A decision is synchronous and changes the decided states. Later, the writer commits the events to the log, and the
committed states change. If a commit fails, the decided states become equal to the committed states again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic

from aima_core.call import EXPECTED_VERSION, Call
from aima_core.domain import Domain, S
from aima_core.errors import Conflict, InvalidRequest, PayloadTooLarge
from aima_core.process.dry_run import plan_of
from aima_core.store.log import Log
from aima_core.store.records import Meta, Planned, Recorded, Statement
from aima_core.store.replay import Folded
from aima_core.stream_fields import stream_of
from aima_core.units import Command, Event, Unit

_LARGEST_EVENT = 512 * 1024  # bytes of JSON; small enough for the messages of any bus

Applied = tuple[list[Recorded], dict[str, Any], list[Statement]]
"""The records of a decision, the new states by stream, and the SQL for the read tables."""


class StreamStates(Generic[S]):
    """Decides commands on the states of all streams.

    `committed` and `committed_versions` match the log. `position` also counts events that are being written.
    """

    def __init__(self, domain: Domain[S], log: Log) -> None:
        self._domain = domain
        self._log = log
        self.committed: dict[str, S] = {}
        self.committed_versions: dict[str, int] = {}
        self.committed_position = 0
        self.decided: dict[str, S] = {}
        self.decided_versions: dict[str, int] = {}
        self.position = 0
        # one dict for each caller of `versions_now`: the versions from before the commits since that call
        self._earlier_versions: dict[int, dict[str, int]] = {}

    def load(self, folded: Folded[S]) -> None:
        """Use the states that were read from the log."""
        # keeps the dict `committed`, because other objects refer to it
        self.committed.clear()
        self.committed.update(folded.world)
        self.decided = folded.world
        self.decided_versions, self.committed_versions = folded.versions, dict(folded.versions)
        self.position = self.committed_position = folded.position

    def resolve(self, text: str) -> str:
        """Return the id of the stream whose id or name is `text`. Returns an unknown text unchanged."""
        return self._domain.resolve(self.committed, text)

    def stream_of(self, command: Command[Any]) -> str | None:
        """Return the stream of a command, or None for a command that starts a new stream."""
        field = command.spec.stream
        return f"{self._domain.name}/{getattr(command, field)}" if field else None

    def version_of(self, stream: str) -> int:
        """Return the committed version of a stream, or 0 if the stream has no event."""
        return self.committed_versions.get(stream, 0)

    @contextlib.contextmanager
    def versions_now(self) -> Iterator[Callable[[str], int]]:
        """Yield a function that returns a stream's version at this moment, even if it is called after later commits."""
        earlier: dict[str, int] = {}
        self._earlier_versions[id(earlier)] = earlier
        try:
            yield lambda stream: earlier.get(stream, self.version_of(stream))
        finally:
            del self._earlier_versions[id(earlier)]

    # --- deciding -------------------------------------------------------------------------------------------

    def decide(self, command: Command[Any], call: Call) -> tuple[tuple[str, ...], list[Event]]:
        """Return the streams that a command concerns, and the command's events. Changes nothing.

        The command's own stream comes first.
        """
        own = self.stream_of(command)
        if own is not None:
            self._check_version(own, call)
        events = self._domain.decide(self.decided, command, call)
        streams = tuple(dict.fromkeys(event.stream for event in events))
        if own is None and call.expected_version is not None:
            concerned = streams[0] if streams else self._named_in_reply(command)
            if concerned is None:
                raise no_stream(command)
            self._check_version(concerned, call)
        return (own, *(s for s in streams if s != own)) if own else streams, events

    def _named_in_reply(self, command: Command[Any]) -> str | None:
        """Return the stream that the reply to a command without events names: what it would create exists already."""
        view = self._domain.reply(self.decided, command, ())
        return None if view is None else stream_of(view, self._domain.name)

    def plan(self, command: Command[Any], call: Call) -> Planned:
        """Decide a command, but record nothing. Returns the events, the effects that would start, and the version."""
        streams, events = self.decide(command, call)
        version = self.decided_versions.get(streams[0], 0) if streams else 0
        return plan_of(self._domain, self.decided, events, version)

    def check_version(self, command: Command[Any], call: Call) -> None:
        """Raise Conflict if the command's stream is not at the version that the caller expects."""
        if call.expected_version is not None and (own := self.stream_of(command)):
            self._check_version(own, call)

    def _check_version(self, stream: str, call: Call) -> None:
        actual = self.decided_versions.get(stream, 0)
        if call.expected_version is not None and call.expected_version != actual:
            unit, data = reader_of(self._domain, stream)
            raise Conflict(
                f"{stream} is at version {actual}, not at the expected version {call.expected_version}; read it again"
                f" with {unit}, then repeat the request with version {actual} if it is still right",
                reason="VERSION_CONFLICT",
                stream=stream,
                expected_version=call.expected_version,
                version=actual,
                read_with={"unit": unit, "input": data},
            )

    def apply(self, events: Sequence[Event], call: Call) -> Applied:
        """Number the events, and compute the new states and the SQL for the read tables.

        Changes the decided states only if all of this succeeds. Raises PayloadTooLarge for an event above 512 KiB.
        """
        meta = Meta.of(call)
        records: list[Recorded] = []
        states: dict[str, S | None] = {}
        versions: dict[str, int] = {}
        statements: list[Statement] = []
        for offset, event in enumerate(events, 1):
            stream, position = event.stream, self.position + offset
            if (size := len(self._log.codec.encode(event))) > _LARGEST_EVENT:
                raise PayloadTooLarge(
                    f"the request leads to an event of {size} bytes; the limit is {_LARGEST_EVENT}",
                    size=size,
                    limit=_LARGEST_EVENT,
                )
            version = versions.get(stream, self.decided_versions.get(stream, 0)) + 1
            record = Recorded(position, stream, version, call.at, meta, event, self._log.event_id(position))
            before = states[stream] if stream in states else self.decided.get(stream)
            states[stream] = self._domain.evolve(before, event)
            versions[stream] = version
            statements += self._domain.project(record)
            records.append(record)
        _merge(self.decided, states)
        self.decided_versions |= versions
        self.position += len(records)
        return records, states, statements

    # --- committing -----------------------------------------------------------------------------------------

    def commit(self, states: Mapping[str, S | None], versions: Mapping[str, int], position: int) -> None:
        """Make these states and versions the committed ones. `position` is that of the last committed event."""
        for earlier in self._earlier_versions.values():
            for stream in versions:
                earlier.setdefault(stream, self.version_of(stream))
        _merge(self.committed, states)
        self.committed_versions |= versions
        self.committed_position = position

    def roll_back(self, streams: Iterable[str]) -> None:
        """Set the decided states and versions of these streams to the committed ones."""
        for stream in streams:
            _merge(self.decided, {stream: self.committed.get(stream)})
            self.decided_versions[stream] = self.committed_versions.get(stream, 0)
        self.position = self.committed_position


def no_stream(request: Unit[Any]) -> InvalidRequest:
    """Return the error for an expected version of a request that changes no stream."""
    return InvalidRequest(
        f"{request.spec.name} changes no stream whose version could be compared; omit {EXPECTED_VERSION}",
        reason="NO_STREAM",
        header=EXPECTED_VERSION,
    )


def reader_of(domain: Domain[Any], stream: str) -> tuple[str, dict[str, Any]]:
    """Return the query, and its input, that shows a stream with its version. Without one, returns the domain's log."""
    ident = stream.partition("/")[2]
    by_reference = [query for query in domain.queries if len(query.spec.references) == 1]
    single = [query for query in by_reference if query.output.stream_field]
    several = [query for query in by_reference if query.output.versioned_fields]
    for query in (*single, *several):
        return query.spec.name, {query.spec.references[0]: ident}
    return f"{domain.name}.log", {"stream": stream}


def _merge(world: dict[str, S], states: Mapping[str, S | None]) -> None:
    for stream, state in states.items():
        if state is None:
            world.pop(stream, None)
        else:
            world[stream] = state
