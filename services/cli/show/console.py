"""The two consoles of the command line, and the forms in which an answer is written."""

from __future__ import annotations

import enum
import os
import sys

from rich.console import Console

# into a file or a pipe a table is as wide as it needs to be, unless somebody has said how wide
WIDE = not sys.stdout.isatty() and "COLUMNS" not in os.environ
out = Console(soft_wrap=True, width=200 if WIDE else None)
err = Console(stderr=True, soft_wrap=True)


class Format(enum.StrEnum):
    """How an answer is written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
