"""`aima version`."""

from __future__ import annotations

import platform

from aima_core import VERSION
from services.cli.shared_options import Output
from services.cli.show.console import Format, out
from services.cli.show.output import document


def version(output: Output = Format.TABLE) -> None:
    """Print the version."""
    if output is Format.TABLE:
        out.print(f"aima {VERSION}")
    else:
        document({"aima": VERSION, "python": platform.python_version()}, output)
