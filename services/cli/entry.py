"""The program `aima`: prints the version itself, imports the commands for everything else, and ends with an exit code.

Most of the time of a command is imports, so this module imports next to nothing (docs/decisions/0019). The commands are
imported late also for Ctrl-C: during the import it ends the program silently.
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
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `aima events | head`
        _discard_stdout()
        code = 0
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _discard_stdout()
        sys.stderr.write(f"the answer cannot be written: {error.strerror}\n")
        code = 1
    gc.freeze()  # the interpreter would search everything that was imported for garbage before it ends: 15 ms
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
