"""The command line: `aima`. Each command stands in a file of its own; here they come together.

Answers go to stdout and nothing else does; progress, hints and errors go to stderr. The exit code is 0 only on
success.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from aima_core.errors import AimaError, InvalidRequest
from services.cli import calls, chatting, events, first_run, overview, running, upkeep
from services.cli.show import Format, err, failure

app = typer.Typer(
    name="aima",
    help="AIMA: inference infrastructure that AI agents run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(running.up)
app.command("run")(running.run)
app.command("status")(overview.status)
app.command("units")(calls.units)
app.command("call")(calls.call)
app.command("chat")(chatting.chat)
app.command("events")(events.events)
app.command("first-run")(first_run.first_run)
app.add_typer(upkeep.app, name="log")
app.command("version")(overview.version)


# typer carries a click of its own, and of its errors exports only the kinds of this one
_UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command that was typed; say what went wrong, and exit with a code that says so too."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except typer.Abort:
        err.print("[dim]stopped[/]")
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except _UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except AimaError as error:
        failure(error, _wanted_format())
        sys.exit(2 if isinstance(error, InvalidRequest) else 1)
    except BrokenPipeError:  # `aima events | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _wanted_format() -> Format:
    """Return the format that the command line asked for, also when it failed before it was read."""
    words = sys.argv[1:]
    for flag in ("-o", "--output"):
        if flag in words[:-1]:
            value = words[words.index(flag) + 1]
            return Format(value) if value in list(Format) else Format.TABLE
    return Format.TABLE


if __name__ == "__main__":
    main()
