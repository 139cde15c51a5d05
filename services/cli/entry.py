"""The program `aima`: prints the version, or imports the commands and runs one; ends with an exit code.

Imports take most of a command's time, so this module imports almost nothing (docs/decisions/0022). Because `main`
imports the commands, Ctrl-C during the import ends the program without a traceback.
"""

from __future__ import annotations

import errno
import gc
import os
import sys

_VERSION = (["--version"], ["version"])
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the disk under stdout is full or broken


def main() -> None:
    """Run the command line and exit: 0 for success, 1 for a failure, 2 for bad input, 130 for Ctrl-C."""
    if sys.stderr is None:  # Python has no stream for a closed descriptor
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (open until the end)
    if sys.stdout is None:
        sys.stderr.write("stdout is closed; to discard the answer, redirect it: >/dev/null\n")
        sys.exit(1)
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of stdout has ended, as in `aima events | head`
        _discard_stdout()
        code = 0
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _discard_stdout()
        sys.stderr.write(f"the answer cannot be written: {error.strerror}\n")
        code = 1
    gc.freeze()  # saves 15 ms: at its end, the interpreter would search all imported modules for garbage
    sys.exit(code)


def _run(words: list[str]) -> int:
    if words in _VERSION and "_AIMA_COMPLETE" not in os.environ:
        from aima_core import VERSION

        sys.stdout.write(f"aima {VERSION}\n")
        return 0
    from services.cli import main as commands

    return commands.run()


def _discard_stdout() -> None:
    """Send all further output to /dev/null, so that the flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
