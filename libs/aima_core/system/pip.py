"""Builds the command line of a pip that ends with this process. The user's pip configuration chooses the index."""

from __future__ import annotations

import os
import sys

# If AIMA is killed with SIGKILL, the kernel stops pip. A surviving pip would write into a folder that the next process
# of AIMA uses. Works only on Linux; on other systems, pip runs to its end.
_BOUND = """
import ctypes, os, runpy, sys
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG (linux/prctl.h), SIGKILL
if os.getppid() != parent:
    sys.exit(1)
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def command(*arguments: str) -> list[str]:
    """Return the command line of a pip that ends with this process. Run pip as a child in a session of its own."""
    python = [sys.executable, "-P", "-c", _BOUND, str(os.getpid())]  # -P ignores a pip.py in the current folder
    # no cache, because a cached wheel would keep the disk space of a deleted package
    return [*python, *arguments, "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
