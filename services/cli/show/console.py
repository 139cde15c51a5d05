"""The consoles for stdout and stderr, and the output formats."""

from __future__ import annotations

import enum
import os
import sys

from rich.console import Console

# in a file or a pipe, tables are as wide as needed unless COLUMNS is set
WIDE = not sys.stdout.isatty() and "COLUMNS" not in os.environ
out = Console(soft_wrap=True, width=200 if WIDE else None)
err = Console(stderr=True, soft_wrap=True)


class Format(enum.StrEnum):
    """The output formats."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
