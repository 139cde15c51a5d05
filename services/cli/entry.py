"""The entry point of the program `aima`: imports the commands late, so that Ctrl-C during the import ends silently."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the commands and run the command line; Ctrl-C during the import exits with 130."""
    try:
        from services.cli import main as commands

        commands.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
