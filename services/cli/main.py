"""The command line: `aima`. Each command stands in a file of its own; here they come together.

Answers go to stdout and nothing else does; progress, hints and errors go to stderr. The exit code is 0 only on
success. What is no command here is a domain's, made from what is on the bus: units/groups.py.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any

import typer

from aima_core.errors import AimaError, InvalidRequest
from services.cli.commands import (
    bus,
    call,
    chat,
    config,
    events,
    first_run,
    keys,
    log,
    mcp,
    run,
    status,
    units,
    up,
    version,
)
from services.cli.shared_options import ApiKey, Config, Url
from services.cli.show.console import Format, err
from services.cli.show.output import failure
from services.cli.units.groups import Aima

app = typer.Typer(
    name="aima",
    cls=Aima,
    help="AIMA: inference infrastructure that AI agents run.",
    epilog="Each domain on the bus is a command too: aima service --help. Mistyped words are refused with the nearest.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # units/groups.py does, with the domains among them
)
app.command("up")(up.up)
app.command("run")(run.run)
app.command("status")(status.status)
app.command("units")(units.units)
app.command("call")(call.call)
app.command("exec", help="The same as call.")(call.call)
app.command("chat")(chat.chat)
app.command("events")(events.events)
app.command("mcp")(mcp.mcp)
app.command("first-run")(first_run.first_run)
app.add_typer(keys.app, name="keys")
app.add_typer(log.app, name="log")
app.add_typer(bus.app, name="bus")
app.add_typer(config.app, name="config")
app.command("version")(version.version)


def _told(wanted: bool) -> None:
    if wanted:
        version.version()
        raise typer.Exit


@app.command("help")
def show_help(
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...", help="Of what.")] = None,
) -> None:
    """Show help, as --help does: `aima help service start`."""
    app([*(words or ()), "--help"], prog_name="aima", standalone_mode=False)


@app.callback()
def everywhere(
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
    version: Annotated[  # noqa: ARG001 (what it asks for is told before anything else is looked at)
        bool, typer.Option("--version", is_eager=True, callback=_told, help="Print the version.")
    ] = False,
) -> None:
    """AIMA: inference infrastructure that AI agents run."""
    for name, value in (("AIMA_URL", url), ("AIMA_API_KEY", api_key), ("AIMA_CONFIG", str(config or ""))):
        if value:
            os.environ[name] = value  # where the command behind looks for what it is not told itself


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a disk says that takes no more

# typer carries a click of its own, and of its errors exports only the kinds of this one
_UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command that was typed; say what went wrong, and exit with a code that says so too."""
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:  # `aima events | head`
        _write_no_more()
        code = 0
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _write_no_more()
        err.print(f"the answer cannot be written: {error.strerror}", markup=False, highlight=False)
        code = 1
    sys.exit(code)


def _run() -> int:
    """Run the command that was typed, and return the exit code."""
    try:
        return app(prog_name="aima", standalone_mode=False) or 0
    except typer.Abort:
        err.print("[dim]stopped[/]")
        return 130
    except KeyboardInterrupt:
        return 130
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help stands on stdout by now, and was asked for
            return 0
        if near := getattr(error, "possibilities", None):
            error.possibilities = near[:1]
        if _wanted_format() is Format.TABLE:
            error.show()
        else:
            failure(InvalidRequest(error.format_message(), reason="USAGE"), _wanted_format())
        return int(error.exit_code)
    except AimaError as error:
        failure(error, _wanted_format())
        return 2 if isinstance(error, InvalidRequest) else 1


def _write_no_more() -> None:
    """Let what is still to be written go nowhere, at the end of the program too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _wanted_format() -> Format:
    """Return the format that the command line asked for, also when it failed before it was read."""
    words = sys.argv[1:]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        value = {"-o": following, "--output": following}.get(word, word.removeprefix("--output=").removeprefix("-o"))
        if word.startswith(("-o", "--output")) and value in list(Format):
            return Format(value)
    return Format.TABLE


if __name__ == "__main__":
    main()
