"""Writes answers and errors: tables for people, exactly one document with `-o json` or `-o yaml`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aima_core.errors import AimaError
from services.cli.show import tables
from services.cli.show.console import Format, err, styled, yellow


def document(data: Any, form: Format, columns: Sequence[str] = ()) -> None:
    """Write an answer in a format. `columns`: the columns of a table; empty: all that fit."""
    match form:
        case Format.JSON:
            print(json.dumps(data, indent=2, ensure_ascii=False))  # noqa: T201 (the answer goes to stdout)
        case Format.YAML:
            import yaml  # slow to import, and rarely needed

            print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")  # noqa: T201
        case Format.TABLE:
            tables.answer(data, columns)


def failure(error: AimaError, form: Format) -> None:
    """Write an error: as text on stderr, or as the document on stdout with `-o json` or `-o yaml`."""
    if form is not Format.TABLE:
        document({"error": error.body()}, form)
        return
    err.print(styled("bold red", error.code), f" {error.message}")
    for fault in error.details.get("fields", ()):
        if str(fault.get("expected")) not in error.message:
            err.print("  ", yellow(fault.get("field")), f": {fault.get('expected')}")
