"""Runs pip as a child that does not outlive us. Which index it asks is the user's own configuration."""

from __future__ import annotations

import os
import sys

# Runs pip so that the kernel ends it when we die without a word (SIGKILL), or it would go on writing into a folder
# that our next process believes to be its own. Linux only; elsewhere a pip that was left behind runs to its end.
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
    """Return the command line of a pip that is bound to this process, for a child in a session of its own."""
    own = [sys.executable, "-P", "-c", _BOUND, str(os.getpid())]  # -P: no pip.py of the current folder
    # a cached wheel would hold the disk space of what was deleted
    return [*own, *arguments, "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
