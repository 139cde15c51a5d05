"""Writes the frame of an event for a caller. Pure.

Depending on its rights, the caller sees the whole event, the event without its principal, or nothing.
"""

from __future__ import annotations

import re
from functools import cached_property

import msgspec

from services.gateway.entrance.access import Policy, Principal, without_caller
from services.gateway.events import sse

_SECRETIVE = frozenset({"gateway"})  # reading the events of these domains has high risk, because the events name keys
_SUBJECT = re.compile(r"aima\.events\.([a-z0-9_]+)\.([a-z0-9_]+)\.[^.]+")


class EventFrame(msgspec.Struct, frozen=True, dict=True):
    """An event as a client gets it. `principal` is the name of the key that caused the event; "" without a key."""

    seq: int
    domain: str
    kind: str
    stream: str
    principal: str
    frame: bytes

    @cached_property
    def hidden(self) -> bytes:
        """The frame without the caller who caused the event. Empty if the event cannot be decoded."""
        _, _, data = self.frame.partition(b"\ndata: ")
        try:
            return sse.event(without_caller(msgspec.json.decode(data)), kind=self.kind, ident=str(self.seq))
        except (msgspec.MsgspecError, ValueError, RecursionError):  # for example, a number is too large
            return b""


class _Head(msgspec.Struct):
    stream: str = ""
    principal: str | None = None


def visible(principal: Principal, domain: str) -> bool:
    """Whether the caller may see the domain's events."""
    risk = "high" if domain in _SECRETIVE else "low"
    return principal.reaches(domain, risk) if principal.known else risk == "low"


def frame_for(principal: Principal, policy: Policy, event: EventFrame) -> bytes:
    """Return what a caller may see of an event: the whole frame, the frame without its principal, or nothing."""
    if not visible(principal, event.domain):
        return b""
    return event.frame if policy.sees_whole(principal, event.domain, event.principal) else event.hidden


def read(seq: int, subject: str, data: bytes) -> EventFrame | None:
    """Parse a message of the event stream. Returns None if the message is not an event of AIMA."""
    match = _SUBJECT.fullmatch(subject)
    if not match:
        return None
    try:
        head = msgspec.json.decode(data, type=_Head)
        if b"\n" in data or b"\r" in data:
            data = msgspec.json.format(data, indent=-1)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    domain, kind = match[1], f"{match[1]}.{match[2]}"
    frame = sse.event(data, kind=kind, ident=str(seq))
    return EventFrame(seq, domain, kind, head.stream, head.principal or "", frame)
