"""What people and programs see: tables on a terminal, exactly one document with `-o json` or `-o yaml`."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aima_core.errors import AimaError

# into a file or a pipe a table is as wide as it needs to be, unless somebody has said how wide
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200)
err = Console(stderr=True, soft_wrap=True)

_COLUMNS = 8  # of a table whose columns nobody chose; `-o json` has them all


class Format(enum.StrEnum):
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def document(data: Any, form: Format) -> None:
    """Write an answer."""
    match form:
        case Format.JSON:
            print(json.dumps(data, indent=2, ensure_ascii=False))  # noqa: T201 (this is where output is made)
        case Format.YAML:
            print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")  # noqa: T201
        case Format.TABLE:
            _table(data)


def failure(error: AimaError, form: Format) -> None:
    """Write an error: for a person on stderr, for a program as the one document on stdout."""
    if form is not Format.TABLE:
        document({"error": error.body()}, form)
        return
    err.print(f"[bold red]{error.code}[/] {escape(error.message)}", highlight=False)
    for fault in error.details.get("fields", ()):
        err.print(f"  [yellow]{fault.get('field')}[/]: {escape(str(fault.get('expected')))}", highlight=False)


def _table(data: Any) -> None:
    if not isinstance(data, Mapping):
        out.print(data)
        return
    lists = [(key, value) for key, value in data.items() if isinstance(value, list)]
    scalars = {key: value for key, value in data.items() if not isinstance(value, list)}
    if len(lists) == 1 and set(scalars) <= {"total"}:
        rows(lists[0][1])
        if scalars:
            out.print(f"[dim]{scalars['total']} in all[/]")
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    nested: list[tuple[str, list[Any]]] = []
    for key, value in data.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            nested.append((key, value))
        else:
            table.add_row(f"[bold]{key}[/]", _cell(value))
    out.print(table)
    for key, items in nested:
        out.print(f"\n[bold]{key}[/]")
        rows(items)


def rows(items: Sequence[Any], columns: Sequence[str] = ()) -> None:
    """Write a table of dicts, or a line for each of anything else; columns default to the first plain ones in use."""
    if not items:
        out.print("[dim]none[/]")
        return
    if not all(isinstance(item, Mapping) for item in items):
        for item in items:
            out.print(str(item), markup=False, highlight=False)
        return
    names = list(columns) or [name for name in items[0] if _plain(item.get(name) for item in items)][:_COLUMNS]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name)
    for item in items:
        table.add_row(*(_cell(item.get(name)) for name in names))
    out.print(table)


def _plain(values: Iterable[Any]) -> bool:
    """Tell whether a column is worth its width: something stands in it, and nothing that is made of parts."""
    found = list(values)
    return any(value not in (None, "") for value in found) and not any(isinstance(v, Mapping | list) for v in found)


def _cell(value: Any) -> str:
    match value:
        case None:
            text = ""
        case str():
            text = value
        case list() if not any(isinstance(item, Mapping | list) for item in value):
            text = ", ".join(map(str, value))
        case Mapping() if not any(isinstance(item, Mapping | list) for item in value.values()):
            text = "  ".join(f"{key} {item}" for key, item in value.items())
        case _:
            text = json.dumps(value, ensure_ascii=False)
    return text.replace("[", r"\[")
