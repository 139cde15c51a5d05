"""Draws the statuses of a service and of a replica into docs/services.md, from the tables in the code: `make docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aima_core.units import Event
from services.service.rules import lifecycle

FILE = Path(__file__).parents[2] / "docs" / "services.md"
_MARK = "<!-- {} of {}: drawn by `make docs` -->"


def drawn(text: str) -> str:
    """Return the document with both pictures up to date."""
    for name, lines in (("service", service()), ("replica", replica())):
        begin, end = _MARK.format("begin", name), _MARK.format("end", name)
        head, _, rest = text.partition(begin)
        picture = "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])
        text = f"{head}{begin}\n{picture}\n{end}{rest.partition(end)[2]}"
    return text


def service() -> Iterator[str]:
    """Yield the picture of a service's statuses."""
    yield "    [*] --> created: service.created"
    yield from _arrows(lifecycle.SERVICE)
    names = ", ".join(event.unit.partition(".")[2] for event in lifecycle.SETTLES)
    yield f"    running --> degraded: not all replicas answer ({names})"
    yield "    degraded --> running: all replicas answer"
    for status in ("created", "stopped", "failed"):
        yield f"    {status} --> [*]: service.deleted"


def replica() -> Iterator[str]:
    """Yield the picture of a replica's statuses."""
    yield "    [*] --> asked: service.start_requested, service.replica_requested"
    yield "    [*] --> waiting: service.replica_requested, in place of one that failed"
    yield from _arrows(lifecycle.REPLICA)
    yield "    ended --> [*]"


def _arrows(table: Mapping[type[Event], Mapping[Any, str]]) -> Iterator[str]:
    """Yield an arrow for each transition between two statuses, labelled with the events that cause it."""
    labels: dict[tuple[str, str], list[str]] = {}
    for event, steps in table.items():
        for before, after in steps.items():
            if before != after:
                labels.setdefault((before, after), []).append(event.unit)
    for (before, after), events in labels.items():
        yield f"    {before} --> {after}: {', '.join(events)}"


if __name__ == "__main__":
    FILE.write_text(drawn(FILE.read_text()))
    sys.exit(0)
