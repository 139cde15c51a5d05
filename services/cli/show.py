"""What people and programs see: tables on a terminal, exactly one document with `-o json` or `-o yaml`."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from aima_core.errors import AimaError

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

_WIDE = 60  # characters of a cell before it is cut


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
    err.print(f"[bold red]{error.code}[/] {error.message}", highlight=False)
    for fault in error.details.get("fields", ()):
        err.print(f"  [yellow]{fault.get('field')}[/]: {fault.get('expected')}", highlight=False)


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
    for key, value in data.items():
        table.add_row(f"[bold]{key}[/]", _cell(value))
    out.print(table)


def rows(items: Sequence[Any], columns: Sequence[str] = ()) -> None:
    """Write a table of dicts, or a line for each of anything else; columns default to those with something in them."""
    if not items:
        out.print("[dim]none[/]")
        return
    if not all(isinstance(item, Mapping) for item in items):
        for item in items:
            out.print(str(item), markup=False, highlight=False)
        return
    names = list(columns) or [
        name for name in items[0] if any(item.get(name) not in (None, "", [], {}) for item in items)
    ]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name)
    for item in items:
        table.add_row(*(_cell(item.get(name)) for name in names))
    out.print(table)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
    text = text.replace("[", r"\[")
    return text if len(text) <= _WIDE else text[: _WIDE - 1] + "…"
