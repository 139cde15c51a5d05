"""Draws tables: chooses the columns that fit, and lists the omitted columns on stderr."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from aima_core.errors import ValidationFailed
from aima_core.suggestions import nearest
from services.cli.show import cells, grid, schema
from services.cli.show.console import bold, dim, err, is_wide, out, width

_LONG = 32  # cells; a column up to this width does not wrap
_SOUGHT = ("id", "name", "status", "replicas", "progress", "error")  # kept longest when the terminal is narrow
_OF_EVENTS = ("recorded_at", "type", "data")
_PART = 20  # cells; minimum width of a column that wraps


def answer(data: Any, columns: Sequence[str] = ()) -> None:
    """Write an answer as tables. For an unknown column, write the whole answer and raise ValidationFailed."""
    if not isinstance(data, Mapping):
        out.print(str(data))
        return
    if columns:
        try:
            chosen = _chosen(data, columns)
        except ValidationFailed:
            answer(data)  # the answer may contain a value that is shown only once, such as a new key
            raise
        rows(chosen, columns)
        return
    lists = [(key, value) for key, value in data.items() if isinstance(value, list)]
    scalars = {key: value for key, value in data.items() if not isinstance(value, list)}
    if len(lists) == 1 and set(scalars) <= {"total"}:
        rows(lists[0][1])
        if scalars:
            out.print(dim(f"{scalars['total']} in total"))
        return
    pairs: list[tuple[str, str]] = []
    nested: list[tuple[str, list[Any]]] = []
    for key, value in data.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            nested.append((key, value))
        else:
            pairs.append((key, cells.column(data, key)))
    grid.pairs(pairs)
    for key, items in nested:
        out.print("\n", bold(key))
        rows(items)


def rows(items: Sequence[Any], columns: Sequence[str] = ()) -> None:
    """Write a table with a row for each dict. If an item is not a dict, write one line for each item.

    Without `columns`, the table has every column with a value that fits; a line on stderr lists the omitted columns.
    """
    if not items:
        out.print(dim("none"))
        return
    if not all(isinstance(item, Mapping) for item in items):
        for item in items:
            out.print(str(item))
        return
    names = list(columns) or _in_use(items)
    texts = {name: [cells.column(item, name) for item in items] for name in names}
    widths = {name: max(map(grid.width_of, (name, *texts[name]))) for name in names}
    sought = _OF_EVENTS if _are_events(items) else _SOUGHT
    shown = names if columns or is_wide() else fitting(widths, width(), sought)
    grid.table(shown, [texts[name] for name in shown], [_needed(widths[name]) for name in shown])
    if omitted := [name for name in names if name not in shown]:
        err.print(dim(f"omitted: {', '.join(omitted)}; select columns: --columns {','.join(shown[:1] + omitted[:2])}"))


def fitting(widths: Mapping[str, int], room: int, sought: Sequence[str] = _SOUGHT) -> list[str]:
    """Return the columns that fit into `room` cells; columns in `sought` are kept longest. Wide columns can wrap."""
    ranked = sorted(widths, key=lambda name: sought.index(name) if name in sought else len(sought))
    shown: list[str] = []
    for name in ranked:
        room -= _needed(widths[name]) + grid.GAP
        if room + grid.GAP < 0 and len(shown) >= 2:
            break
        shown.append(name)
    return [name for name in widths if name in shown]


def _needed(width: int) -> int:
    return width if width <= _LONG else _PART


def _in_use(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns in which any item has a value; columns with objects or lists come last."""
    names = list(dict.fromkeys(name for item in items for name in item))
    values = {name: [item.get(name) for item in items] for name in names}
    if _are_events(items):  # the data of an event matters more than its envelope
        return [*_OF_EVENTS, *(name for name in names if name not in _OF_EVENTS)]
    used = [name for name in names if any(value not in (None, "", [], {}) for value in values[name])] or names
    return sorted(used, key=lambda name: any(isinstance(value, Mapping | list) for value in values[name]))


def _are_events(items: Sequence[Mapping[str, Any]]) -> bool:
    return {"stream", *_OF_EVENTS} <= set(items[0])


def check(columns: Sequence[str], answers: schema.Schema) -> None:
    """Raise ValidationFailed if the schema excludes the columns. A schema that allows any field excludes none."""
    known: dict[str, None] = {}
    for fields in _field_sets(answers):
        if fields is None or all(name in fields or name.partition(".")[0] in fields for name in columns):
            return
        known |= dict.fromkeys(fields)
    if columns:
        raise _refusal(columns, known)


def _field_sets(answers: schema.Schema) -> Iterator[schema.Schema | None]:
    """Yield the fields of each list of objects in an answer, then the fields of the answer.

    Yields None in place of fields if the schema allows any field.
    """
    for each in schema.alternatives(answers, answers):
        known = each.get("properties", {})
        for field_schema in known.values():
            for item in schema.alternatives(schema.items(field_schema, answers), answers):
                if item.get("type", "object") == "object" and "array" in schema.types(field_schema, answers):
                    yield _fields(item)
        yield _fields(each)


def _fields(field_schema: schema.Schema) -> schema.Schema | None:
    return None if field_schema.get("additionalProperties") else field_schema.get("properties")


def _chosen(data: Mapping[str, Any], columns: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the rows that have these columns: a list in the answer, or the answer itself.

    Raises ValidationFailed if no row has them.
    """
    known: dict[str, None] = {}
    for items in _tables(data):
        fields = dict.fromkeys(name for item in items for name in item)
        if all(name in fields or name.partition(".")[0] in fields for name in columns):
            return items
        known |= fields
    if [] in data.values():
        return []  # an empty list says nothing about its columns
    raise _refusal(columns, known)


def _refusal(columns: Sequence[str], known: Collection[str]) -> ValidationFailed:
    available = ", ".join(known)
    missing = [name for name in columns if name.partition(".")[0] not in known]
    suggestions = [match for name in missing for match in nearest(name, known)[:1]]
    hint = f" Did you mean {', '.join(suggestions)}?" if suggestions else ""
    problem = f"unknown column {', '.join(missing)}" if missing else f"no table has all of {', '.join(columns)}"
    return ValidationFailed(
        f"--columns: {problem}; known columns: {available}.{hint}",
        fields=[{"field": "--columns", "expected": available}],
    )


def _tables(data: Mapping[str, Any]) -> Iterator[list[Mapping[str, Any]]]:
    for value in data.values():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            yield value
    yield [data]
