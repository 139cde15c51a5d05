"""What a log holds or would, as values: an event with its envelope, a plan, a kept reply, a batch; and their codec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from aima_core.call import Call, timestamp
from aima_core.errors import ExecutionFailed
from aima_core.units import Event

Statement = tuple[str, tuple[Any, ...]]
Upcaster = Callable[[dict[str, Any]], Event]


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an event was recorded: stored once beside its data, never inside it."""

    request_id: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    principal: str = ""
    trace: str = ""
    node: str = ""

    @classmethod
    def of(cls, call: Call) -> Meta:
        """Return what an event remembers of the call that led to it."""
        return cls(call.request_id, call.correlation_id, call.causation_id, call.principal, call.trace, call.node)


class Recorded(NamedTuple):
    """An event as the log holds it. `recorded_at` in Unix seconds."""

    position: int
    stream: str
    version: int
    recorded_at: float
    meta: Meta
    event: Event
    id: str

    def wire(self) -> dict[str, Any]:
        """Return the event as the bus, the queries and the doors show it."""
        meta = self.meta
        return {
            "id": self.id,
            "type": self.event.unit,
            "stream": self.stream,
            "version": self.version,
            "position": self.position,
            "recorded_at": timestamp(self.recorded_at),
            "node": meta.node,
            "request_id": meta.request_id,
            "correlation_id": meta.correlation_id,
            "causation_id": meta.causation_id,
            "principal": meta.principal,
            "trace": meta.trace,
            "data": self.event,
        }


class Planned(msgspec.Struct, frozen=True):
    """What a dry run returns."""

    events: list[dict[str, Any]]
    effects: list[dict[str, Any]]
    version: int


class StoredReply(msgspec.Struct, frozen=True):
    """What is kept of a keyed request: what was asked, which events it led to, and its answer once there is one."""

    key: str
    request: bytes
    first: int
    last: int
    reply: bytes | None = None


class Batch(msgspec.Struct):
    """What one transaction writes."""

    records: list[Recorded] = []
    statements: list[Statement] = []
    replies: list[StoredReply] = []
    cursors: dict[str, int] = {}


class Codec:
    """Turns events into bytes and back; an event type of an older release goes through its upcaster."""

    def __init__(self, events: Sequence[type[Event]], upcasters: Mapping[str, Upcaster] | None = None) -> None:
        self.encode = msgspec.json.Encoder().encode
        decoders: dict[str, Callable[[bytes], Event]] = {e.unit: msgspec.json.Decoder(e).decode for e in events}
        for unit, upcast in (upcasters or {}).items():
            decoders[unit] = partial(_upcast, upcast)
        self._decoders = decoders

    def decode(self, unit: str, data: bytes) -> Event:
        """Return the event; raise ExecutionFailed for a type that this release does not know, or for a damaged one."""
        if (decode := self._decoders.get(unit)) is None:
            raise ExecutionFailed(
                f"the log holds an event of type {unit}, which this release does not know", reason="UNKNOWN_EVENT"
            )
        try:
            return decode(data)
        except msgspec.MsgspecError as error:
            raise ExecutionFailed(f"an event of type {unit} is damaged: {error}", reason="BAD_EVENT") from error


def _upcast(upcast: Upcaster, data: bytes) -> Event:
    return upcast(msgspec.json.decode(data))


decode_meta = msgspec.json.Decoder(Meta).decode
