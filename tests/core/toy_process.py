"""Run a toy domain as a process of its own: `toy_process.py counter|tally FOLDER URL`. Killed at will by the tests."""

from __future__ import annotations

import sys
from pathlib import Path

from aima_core import structured_logs
from aima_core.process import domain_process
from aima_core.testing import settings_for
from tests.core import toy


def _ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


if __name__ == "__main__":
    domain = {"counter": toy.COUNTER, "tally": toy.TALLY}[sys.argv[1]]
    structured_logs.set_up(domain.name, "info")
    domain_process.run(domain, settings_for(Path(sys.argv[2]), sys.argv[3], domain), _ready)
