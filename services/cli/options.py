"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.show import Format

Output = Annotated[Format, typer.Option("-o", "--output", help="table for people, json or yaml for programs.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="AIMA_CONFIG", help="Settings file; default: config.toml in AIMA_DATA."),
]
