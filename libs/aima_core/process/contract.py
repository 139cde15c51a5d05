"""Keeps a domain's contract with its callers, in one place for all domains.

Replaces the names in a request by ids. Checks that a reply has the type that its unit declares, and adds the versions
of the streams that the reply shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic

from aima_core.domain import Domain, Outside, S
from aima_core.process.stream_states import StreamStates
from aima_core.store.records import Recorded
from aima_core.stream_fields import resolved, stream_of, with_versions
from aima_core.units import Command, Query, U, Unit, View


class Contract(Generic[S]):
    """The contract of one domain."""

    def __init__(self, domain: Domain[S], states: StreamStates[S], outside: Outside[S]) -> None:
        self._name = domain.name
        self._states = states
        self._outside = outside

    def resolve(self, unit: U) -> U:
        """Return the unit with ids in place of the names in its reference fields."""
        changes: dict[str, Any] = {}
        for field in unit.spec.references:
            value = getattr(unit, field)
            if (ids := resolved(value, self._states.resolve)) != value:
                changes[field] = ids
        return unit.model_copy(update=changes) if changes else unit

    async def answer(self, query: Query[Any]) -> View:
        """Return the answer of a resolved query. Raises TypeError if the query declares another type of answer."""
        if not type(query).output.shows_streams():
            return _checked(query, await self._outside.answer(query))
        with self._states.versions_now() as version_of:  # before the answer, which must not be older than its versions
            return with_versions(_checked(query, await self._outside.answer(query)), self._name, version_of)

    def reply(self, command: Command[Any], view: View, records: Sequence[Recorded] = ()) -> tuple[View, int | None]:
        """Return the reply of a resolved command, and the version of the command's stream.

        `records` are the events that led to the reply. The command names its stream. If it names none, its stream is
        the one that the view shows, or else the stream of the first record. The version is that of the stream's last
        record, or the current version if no record is of this stream. Raises TypeError if the command declares another
        type of reply.
        """
        view = _checked(command, view)
        own = self._states.stream_of(command) or stream_of(view, self._name) or (records[0].stream if records else None)
        version = None
        if own is not None:
            seen = (record.version for record in reversed(records) if record.stream == own)
            version = next(seen, None) or self._states.version_of(own)
        if view.shows_streams():
            version_of = self._states.version_of
            view = with_versions(view, self._name, lambda stream: version or 0 if stream == own else version_of(stream))
        return view, version


def _checked(unit: Unit[Any], view: object) -> View:
    """Return the reply if it has the type that the unit declares. Any other type is a bug of the domain."""
    declared = type(unit).output  # read from the class, because an instance may have a field named `output`
    if type(view) is not declared:
        raise TypeError(f"{unit.spec.name} declares {declared.__name__}, but its reply is {type(view).__name__}")
    return view
