"""The entry point of a domain's process. Loads the settings, sets up the log, and serves the domain."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from aima_core import structured_logs
from aima_core.domain import Domain
from aima_core.errors import AimaError, InvalidRequest
from aima_core.process.domain_process import run
from aima_core.settings import load

_LOCKED = "LOG_LOCKED"
_PERMANENT = (_LOCKED, "NOT_WRITABLE")  # reasons of errors that a restart does not repair


def main(domain: Domain[Any], *, config: Path | None = None, ready: int = -1, lifeline: int = -1) -> None:
    """Serve the domain until SIGTERM, SIGINT or the end of the pipe `lifeline`.

    Writes a byte to the pipe `ready` when requests are answered. Exits with 78 (EX_CONFIG) if the settings or the data
    folder are unusable, and with 75 (EX_TEMPFAIL) if another process uses the log. A restart repairs neither of these
    errors.
    """
    try:
        settings = load({domain.name: domain.settings}, path=config, partial=True)
        structured_logs.set_up(domain.name, settings.log.level)
        run(domain, settings, lambda: _report_ready(ready), lifeline)
    except AimaError as error:
        sys.stderr.write(f"{domain.name}: {error.message}\n")
        if error.reason == _LOCKED:
            sys.exit(os.EX_TEMPFAIL)
        sys.exit(os.EX_CONFIG if isinstance(error, InvalidRequest) or error.reason in _PERMANENT else 1)


def _report_ready(ready: int) -> None:
    if ready >= 0:
        os.write(ready, b"1")
