"""Defines the values that a log stores (events, replies, batches), their codec, and the plan of a dry run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from aima_core.call import Call, timestamp
from aima_core.errors import ExecutionFailed
from aima_core.units import Event

Statement = tuple[str, tuple[Any, ...]]
"""An SQL statement and its values."""
Upcaster = Callable[[dict[str, Any]], Event]
"""Converts the data of an older release's event to an event of this release."""


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The context of an event: the request that caused it, the caller and the node. Stored beside the event's data."""

    request_id: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    principal: str = ""
    trace: str = ""
    node: str = ""

    @classmethod
    def of(cls, call: Call) -> Meta:
        """Return the context of the events that a call causes."""
        return cls(call.request_id, call.correlation_id, call.causation_id, call.principal, call.trace, call.node)


class Recorded(NamedTuple):
    """An event in the log. `recorded_at` is in Unix seconds.

    `position` is the event's number in the log. `version` is its number in the stream.
    """

    position: int
    stream: str
    version: int
    recorded_at: float
    meta: Meta
    event: Event
    id: str

    def wire(self) -> dict[str, Any]:
        """Return the event in its public form, as on the bus, in the answers of queries, and at the doors."""
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
    """The answer of a dry run: the events that the command would record, the effects, and the stream's version."""

    events: list[dict[str, Any]]
    effects: list[dict[str, Any]]
    version: int


class StoredReply(msgspec.Struct, frozen=True):
    """A request with an idempotency key: its fingerprint, the range of its events, and its reply.

    `first` and `last` are positions. If the request caused no events, `last` is `first - 1`. `reply` is None until the
    reply is known.
    """

    key: str
    request: bytes
    first: int
    last: int
    reply: bytes | None = None


class Batch(msgspec.Struct):
    """The content of one transaction."""

    records: list[Recorded] = []
    statements: list[Statement] = []
    replies: list[StoredReply] = []
    cursors: dict[str, int] = {}


class Codec:
    """Encodes and decodes events. An upcaster decodes an event type that only an older release records."""

    def __init__(self, events: Sequence[type[Event]], upcasters: Mapping[str, Upcaster] | None = None) -> None:
        self.encode = msgspec.json.Encoder().encode
        decoders: dict[str, Callable[[bytes], Event]] = {e.unit: msgspec.json.Decoder(e).decode for e in events}
        for unit, upcast in (upcasters or {}).items():
            decoders[unit] = partial(_upcast, upcast)
        self._decoders = decoders

    def decode(self, unit: str, data: bytes) -> Event:
        """Return the event. Raises ExecutionFailed if this release does not know the type or the data is damaged."""
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
