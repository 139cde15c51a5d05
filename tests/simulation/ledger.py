"""What a domain's log says, read beside its process: the truth also while that is down, or has not heard of it yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aima_core.domain import Domain
from aima_core.store.records import Codec
from aima_core.units import Event
from tests.simulation.disk import Disk

_PAGE = "SELECT type, data FROM events WHERE position > ? ORDER BY position"
_CURSORS = "SELECT source, position FROM cursors"


class Ledger:
    """One log. `states` by stream, `events` in order; `tell` hears of each."""

    def __init__(self, domain: Domain[Any], disk: Disk, tell: Callable[[str, object], None]) -> None:
        self.domain = domain
        self.states: dict[str, Any] = {}
        self.events: list[Event] = []
        self._disk, self._tell = disk, tell
        self._codec = Codec(domain.events, domain.upcasters)
        self._there = False

    def read(self) -> None:
        """Take in what has been recorded since the last time."""
        for unit, data in self._rows(_PAGE, len(self.events)):
            event = self._codec.decode(unit, data)
            self.events.append(event)
            self._tell("  recorded", event)
            state = self.domain.evolve(self.states.get(event.stream), event)
            if state is None:
                self.states.pop(event.stream, None)
            else:
                self.states[event.stream] = state

    def cursor(self, peer: str) -> int:
        """Return how far the domain has followed a peer."""
        return max((position for source, position in self._rows(_CURSORS) if source.startswith(f"{peer}/")), default=0)

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        file = self._disk.file(self.domain.name)
        if not self._there:
            self._there = bool(file.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone())
        return file.execute(sql, values).fetchall() if self._there else []
