"""The options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aima_core.errors import InvalidRequest
from services.cli.show.console import Format

Output = Annotated[Format, typer.Option("-o", "--output", help="table for people, json or yaml for programs.")]
Columns = Annotated[
    str, typer.Option("--columns", metavar="A,B,C", help="Columns of the table, or fields of what is shown.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="AIMA_CONFIG", help="Settings file; default: config.toml in AIMA_DATA."),
]
Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="AIMA_URL", metavar="URL", help="A gateway, http://host:9090; without it, the bus is asked."
    ),
]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="AIMA_API_KEY", metavar="KEY", help="Key for the gateway at --url.")
]

Addr = Annotated[str, typer.Option("--addr", metavar="HOST:PORT", help="Where the gateway's doors are, or unix:/path.")]


def open_at(addr: str) -> None:
    """Let the gateway of this process and its children open its doors there."""
    if addr:
        os.environ["AIMA_GATEWAY_ADDR"] = addr


def listed(columns: str, output: Format) -> list[str]:
    """Return the columns that were asked for; raise InvalidRequest where there is no table, before anything is done."""
    names = [name.strip() for name in columns.split(",") if name.strip()]
    if names and output is not Format.TABLE:
        raise InvalidRequest(f"--columns is for tables; -o {output} has everything", reason="NO_TABLE")
    return names
