"""Small programs that behave as engines do, well or badly. Each says `ready` when it does what its name says."""

from __future__ import annotations

import sys
from pathlib import Path

STAND_IN = Path(__file__).parents[1] / "stand_ins" / "engine.py"

_SLEEP = "print('ready', flush=True); import time; time.sleep(600)"
_CHILD = "[sys.executable, '-c', 'import time; time.sleep(600)']"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


OBEDIENT = python(
    f"import signal, os; signal.signal(signal.SIGTERM, lambda *_: os._exit(7)); {_SLEEP}"
)  # exits with 7 when it is asked to end
STUBBORN = python(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_SLEEP}")
PARENT = python(f"import subprocess, sys; print('child', subprocess.Popen({_CHILD}).pid, flush=True); {_SLEEP}")
DEEP = python(  # its child has a session of its own and ignores SIGTERM
    "import subprocess, sys, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    f"child = subprocess.Popen({_CHILD}, start_new_session=True);"
    "signal.signal(signal.SIGTERM, signal.SIG_DFL);"
    f"print('child', child.pid, flush=True); {_SLEEP}"
)
BARE_CHILD = python(  # its child has lost every mark
    f"import subprocess, sys; print('child', subprocess.Popen({_CHILD}, env={{}}).pid, flush=True); {_SLEEP}"
)


def ends_with(code: int) -> tuple[str, ...]:
    return python(f"print('ready', flush=True); raise SystemExit({code})")


def prints(count: int, text: str = "line") -> tuple[str, ...]:
    """Print numbered lines and stay."""
    return python(f"[print('{text}', number) for number in range({count})]; {_SLEEP}")
