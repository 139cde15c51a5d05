"""Where the program `aima` begins: importing the commands takes long enough for somebody to think better of it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that was typed; stopped while it is still being imported, it ends as silently as later on."""
    try:
        from services.cli import main as commands

        commands.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
