"""An event of the stream as clients get it: whether somebody sees it, and how much of it. Pure."""

from __future__ import annotations

import re
from functools import cached_property

import msgspec

from services.gateway.entrance.access import Policy, Principal, without_caller
from services.gateway.events import sse

_SECRETIVE = frozenset({"gateway"})  # domains whose events are of high risk to read: they tell whose keys there are
_SUBJECT = re.compile(r"aima\.events\.([a-z0-9_]+)\.([a-z0-9_]+)\.[^.]+")


class EventFrame(msgspec.Struct, frozen=True, dict=True):
    """An event as clients get it. `principal`: who led to it."""

    seq: int
    domain: str
    kind: str
    stream: str
    principal: str
    frame: bytes

    @cached_property
    def hidden(self) -> bytes:
        """The frame for those who do not see who led to it: made once for all of them, empty when it cannot be."""
        _, _, data = self.frame.partition(b"\ndata: ")
        try:
            return sse.event(without_caller(msgspec.json.decode(data)), kind=self.kind, ident=str(self.seq))
        except (msgspec.MsgspecError, ValueError, RecursionError):  # such as a number beyond all that there are here
            return b""


class _Head(msgspec.Struct):
    stream: str = ""
    principal: str | None = None


def visible(who: Principal, domain: str) -> bool:
    """Whether somebody may see a domain's events."""
    risk = "high" if domain in _SECRETIVE else "low"
    return who.reaches(domain, risk) if who.known else risk == "low"


def frame_for(who: Principal, policy: Policy, told: EventFrame) -> bytes:
    """Return what somebody gets of an event: nothing, the whole, or all but who led to it."""
    if not visible(who, told.domain):
        return b""
    return told.frame if policy.sees_whole(who, told.domain, told.principal) else told.hidden


def read(seq: int, subject: str, data: bytes) -> EventFrame | None:
    """Return a message of the stream as an event; None for what is none of ours."""
    fits = _SUBJECT.fullmatch(subject)
    if not fits:
        return None
    try:
        head = msgspec.json.decode(data, type=_Head)
        if b"\n" in data or b"\r" in data:
            data = msgspec.json.format(data, indent=-1)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    domain, kind = fits[1], f"{fits[1]}.{fits[2]}"
    frame = sse.event(data, kind=kind, ident=str(seq))
    return EventFrame(seq, domain, kind, head.stream, head.principal or "", frame)
