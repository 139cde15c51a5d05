"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from aima_core.errors import InvalidRequest
from services.cli.show.console import Format

Output = Annotated[Format, typer.Option("-o", "--output", help="table for people; json or yaml for programs.")]
Columns = Annotated[str, typer.Option("--columns", metavar="A,B,C", help="Columns of the table, separated by commas.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="AIMA_CONFIG", help="Settings file; default: config.toml in AIMA_DATA."),
]
Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="AIMA_URL",
        metavar="URL",
        help="URL of a gateway, such as http://host:9090; default: use the bus.",
    ),
]
ApiKey = Annotated[
    str, typer.Option("--api-key", envvar="AIMA_API_KEY", metavar="KEY", help="API key for the gateway at --url.")
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the events that the command would record; change nothing.")
]
Key = Annotated[
    str, typer.Option("--key", "--idempotency-key", help="Idempotency key: a repeat with the same key changes nothing.")
]
Expect = Annotated[
    int | None, typer.Option("--expect", "--expected-version", min=0, help="Fail unless the stream has this version.")
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", "--deadline", min=0.1, help="Timeout in seconds; default: the unit's timeout."),
]
As = Annotated[str, typer.Option("--as", "--principal", help="Principal to record in the events.")]

Addr = Annotated[
    str, typer.Option("--addr", metavar="HOST:PORT", help="Address the gateway listens on, or unix:/path.")
]


def listen_at(addr: str) -> None:
    """Set the address that the gateway of this process and its children listens on."""
    if addr:
        os.environ["AIMA_GATEWAY_ADDR"] = addr


def column_names(columns: str, output: Format) -> list[str]:
    """Return the names in `--columns`. Raises InvalidRequest if there are names but the output is not a table."""
    names = [name.strip() for name in columns.split(",") if name.strip()]
    if names and output is not Format.TABLE:
        raise InvalidRequest(f"--columns applies to tables only; -o {output} contains every field", reason="NO_TABLE")
    return names
