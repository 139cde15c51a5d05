"""Reads the query string of `/api/v2/events`. The query string selects events and the first event to send. Pure.

domain=service            only events of this domain; repeatable
type=service.started      only events of this type; service.* and model.pull_* select by prefix; repeatable
stream=service/svc-1      only events of this stream
after=SEQ                 begin after the event with this `id`; 0 begins with the first stored event
since=10m                 begin this long ago, or at a time such as 2026-01-31T12:00:00Z
last_event_id=SEQ         the `id` of the last event that the client received; the header Last-Event-ID overrides it
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
_MOST = 50  # the most domains, and the most types, that one client may name
_FIELDS = ("domain", "type", "stream", "after", "since", "last_event_id")


@dataclass(frozen=True)
class EventFilter:
    """A client's selection of events.

    The events begin after event number `after`, or at the time `since` in Unix seconds. If both are None, the client
    gets only new events.
    """

    domains: frozenset[str] = frozenset()
    types: tuple[str, ...] = ()
    stream: str = ""
    after: int | None = None
    since: float | None = None

    def fits(self, domain: str, kind: str, stream: str) -> bool:
        """Whether the selection includes the event."""
        if self.domains and domain not in self.domains:
            return False
        if self.stream and stream != self.stream:
            return False
        return not self.types or any(
            kind.startswith(pattern[:-1]) if pattern.endswith("*") else kind == pattern for pattern in self.types
        )

    def subject(self) -> str:
        """Return the narrowest NATS subject that matches all selected events."""
        stream_domain, _, ident = self.stream.partition("/")
        domains = self.domains | {kind.partition(".")[0] for kind in self.types}
        if stream_domain:
            domains |= {stream_domain}
        kinds = {kind.partition(".")[2] for kind in self.types}
        exact = len(kinds) == 1 and not next(iter(kinds)).endswith("*")
        parts = (
            next(iter(domains)) if len(domains) == 1 else "*",
            next(iter(kinds)) if exact else "*",
            token(ident) if ident else "*",
        )
        return f"aima.events.{'.'.join(parts)}"


def read(pairs: Sequence[tuple[str, str]], last_event_id: str, now: float) -> EventFilter:
    """Parse a query string and the header Last-Event-ID. Raises ValidationFailed for an invalid parameter."""
    values: dict[str, list[str]] = {}
    for name, text in pairs:
        if name not in _FIELDS:
            raise _invalid(name[:100], f"one of {', '.join(_FIELDS)}")
        if text:
            values.setdefault(name, []).append(text)
    for name in ("stream", "after", "since", "last_event_id"):
        if len(values.get(name, ())) > 1:
            raise _invalid(name, "at most one value")
    start = next(iter(values.get("last_event_id", values.get("after", ()))), None)
    after = _number("Last-Event-ID", last_event_id) if last_event_id else None
    if after is None and start is not None:
        after = _number("last_event_id" if "last_event_id" in values else "after", start)
    return EventFilter(
        domains=frozenset(_all("domain", values, _DOMAIN, "the name of a domain, such as service")),
        types=tuple(_all("type", values, _TYPE, "a type such as service.started, or service.*")),
        stream=next(iter(_all("stream", values, _STREAM, "a stream such as service/svc-1")), ""),
        after=after,
        since=_since(values["since"][0], now) if after is None and "since" in values else None,
    )


def _all(name: str, values: dict[str, list[str]], pattern: re.Pattern[str], expected: str) -> list[str]:
    texts = values.get(name, [])
    if len(texts) > _MOST:
        raise _invalid(name, f"at most {_MOST} values")
    if not all(pattern.fullmatch(text) for text in texts):
        raise _invalid(name, expected)
    return texts


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) <= LARGEST):
        raise _invalid(name, "the id of an event, such as 42")
    return int(text)


def _since(text: str, now: float) -> float:
    try:
        return moment(text, now)
    except ValueError:
        raise _invalid("since", "90s, 10m, 2h, 1d, or 2026-01-31T12:00:00Z") from None


def _invalid(name: str, expected: str) -> ValidationFailed:
    return ValidationFailed(f"{name}: expected {expected}", fields=[{"field": name, "expected": expected}])
