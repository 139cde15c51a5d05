"""Which events a client wants, and from where on: the query string of `/api/v2/events`. Pure.

domain=service            of this domain; repeatable
type=service.started      of this type, or of all that begin so: service.*, model.pull_*; repeatable
stream=service/svc-1      about this one
after=SEQ                 behind this number, which is an event's `id`; 0: all that are kept
since=10m                 from then on: a time, or how long ago
last_event_id=SEQ         the same as the header Last-Event-ID, which comes first: where a client was cut off
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aima_core.errors import ValidationFailed
from aima_core.text_input import moment
from aima_core.units import LARGEST, token

_DOMAIN = re.compile(r"[a-z][a-z0-9_]{0,39}")
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,39}\.(\*|[a-z][a-z0-9_]{0,60}\*?)")
_STREAM = re.compile(r"[a-z][a-z0-9_]{0,39}/[^/]{1,200}")
_MOST = 50  # domains or types that one client may name
_FIELDS = ("domain", "type", "stream", "after", "since", "last_event_id")


@dataclass(frozen=True)
class EventFilter:
    """What a client asks for. `after` is a number, `since` Unix seconds; neither: only what is new."""

    domains: frozenset[str] = frozenset()
    types: tuple[str, ...] = ()
    stream: str = ""
    after: int | None = None
    since: float | None = None

    def fits(self, domain: str, kind: str, stream: str) -> bool:
        """Whether an event is one of those."""
        if self.domains and domain not in self.domains:
            return False
        if self.stream and stream != self.stream:
            return False
        return not self.types or any(
            kind.startswith(wanted[:-1]) if wanted.endswith("*") else kind == wanted for wanted in self.types
        )

    def subject(self) -> str:
        """Return the narrowest subject of the bus that all of those have."""
        own, _, ident = self.stream.partition("/")
        domains = self.domains | {kind.partition(".")[0] for kind in self.types} | ({own} if own else set())
        kinds = {kind.partition(".")[2] for kind in self.types}
        exact = len(kinds) == 1 and not next(iter(kinds)).endswith("*")
        parts = (
            next(iter(domains)) if len(domains) == 1 else "*",
            next(iter(kinds)) if exact else "*",
            token(ident) if ident else "*",
        )
        return f"aima.events.{'.'.join(parts)}"


def read(pairs: Sequence[tuple[str, str]], last_event_id: str, now: float) -> EventFilter:
    """Return what a query string and the header Last-Event-ID ask for. Raises ValidationFailed."""
    given: dict[str, list[str]] = {}
    for name, text in pairs:
        if name not in _FIELDS:
            raise _fault(name[:100], f"one of {', '.join(_FIELDS)}")
        if text:
            given.setdefault(name, []).append(text)
    for name in ("stream", "after", "since", "last_event_id"):
        if len(given.get(name, ())) > 1:
            raise _fault(name, "once at most")
    begin = next(iter(given.get("last_event_id", given.get("after", ()))), None)
    after = _number("Last-Event-ID", last_event_id) if last_event_id else None
    if after is None and begin is not None:
        after = _number("last_event_id" if "last_event_id" in given else "after", begin)
    return EventFilter(
        domains=frozenset(_all("domain", given, _DOMAIN, "the name of a domain, such as service")),
        types=tuple(_all("type", given, _TYPE, "a type such as service.started, or service.*")),
        stream=next(iter(_all("stream", given, _STREAM, "a stream such as service/svc-1")), ""),
        after=after,
        since=_since(given["since"][0], now) if after is None and "since" in given else None,
    )


def _all(name: str, given: dict[str, list[str]], pattern: re.Pattern[str], expected: str) -> list[str]:
    texts = given.get(name, [])
    if len(texts) > _MOST:
        raise _fault(name, f"at most {_MOST} times")
    if not all(pattern.fullmatch(text) for text in texts):
        raise _fault(name, expected)
    return texts


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) <= LARGEST):
        raise _fault(name, "the number of an event, as its id says")
    return int(text)


def _since(text: str, now: float) -> float:
    try:
        return moment(text, now)
    except ValueError:
        raise _fault("since", "90s, 10m, 2h, 1d, or 2026-01-31T12:00:00Z") from None


def _fault(name: str, expected: str) -> ValidationFailed:
    return ValidationFailed(f"{name}: expected {expected}", fields=[{"field": name, "expected": expected}])
