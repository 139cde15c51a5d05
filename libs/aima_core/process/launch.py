"""How a domain becomes a process: settings, log, serve; and how it says that it cannot."""

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

_FINAL = ("LOG_LOCKED", "NOT_WRITABLE")  # reasons that another try will not change
_LOCKED = "LOG_LOCKED"


def main(domain: Domain[Any], *, config: Path | None = None, ready: int = -1, lifeline: int = -1) -> None:
    """Serve the domain until told to stop; say so with a byte to `ready`, and stop when `lifeline` reads as ended.

    Exits with 78 (EX_CONFIG) when settings or data folder will not do, with 75 (EX_TEMPFAIL) when another process has
    the log: a supervisor need not try again.
    """
    try:
        settings = load({domain.name: domain.settings}, path=config, partial=True)
        structured_logs.set_up(domain.name, settings.log.level)
        run(domain, settings, lambda: _say(ready), lifeline)
    except AimaError as error:
        sys.stderr.write(f"{domain.name}: {error.message}\n")
        if error.reason == _LOCKED:
            sys.exit(os.EX_TEMPFAIL)
        sys.exit(os.EX_CONFIG if isinstance(error, InvalidRequest) or error.reason in _FINAL else 1)


def _say(ready: int) -> None:
    if ready >= 0:
        os.write(ready, b"1")
