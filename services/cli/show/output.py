"""What people and programs see: tables on a terminal, exactly one document with `-o json` or `-o yaml`."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from aima_core.errors import AimaError

# into a file or a pipe a table is as wide as it needs to be, unless somebody has said how wide
WIDE = not sys.stdout.isatty() and "COLUMNS" not in os.environ
out = Console(soft_wrap=True, width=200 if WIDE else None)
err = Console(stderr=True, soft_wrap=True)


class Format(enum.StrEnum):
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def document(data: Any, form: Format, columns: Sequence[str] = ()) -> None:
    """Write an answer; `columns` choose what a table shows of it."""
    match form:
        case Format.JSON:
            print(json.dumps(data, indent=2, ensure_ascii=False))  # noqa: T201 (this is where output is made)
        case Format.YAML:
            print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")  # noqa: T201
        case Format.TABLE:
            from services.cli.show import tables  # which needs the consoles from here

            tables.answer(data, columns)


def failure(error: AimaError, form: Format) -> None:
    """Write an error: for a person on stderr, for a program as the one document on stdout."""
    if form is not Format.TABLE:
        document({"error": error.body()}, form)
        return
    err.print(f"[bold red]{error.code}[/] {escape(error.message)}", highlight=False)
    for fault in error.details.get("fields", ()):
        if str(fault.get("expected")) not in error.message:
            err.print(f"  [yellow]{fault.get('field')}[/]: {escape(str(fault.get('expected')))}", highlight=False)
