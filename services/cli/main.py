"""The program `aima`: registers the commands and turns failures into messages and exit codes.

Only answers go to stdout; progress, hints and errors go to stderr. The exit code is 0 only on success. Any other word
is the name of a domain on the bus: `units/groups.py`.
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
    epilog="Each domain on the bus is a command too: aima service --help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # units/groups.py suggests domains as well
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


def _print_version(requested: bool) -> None:
    if requested:
        version.version()
        raise typer.Exit


@app.command("help")
def show_help(
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...", help="Default: all commands.")] = None,
) -> None:
    """Show help for a command, as --help does: `aima help service start`."""
    app([*(words or ()), "--help"], prog_name="aima", standalone_mode=False)


@app.callback()
def everywhere(
    url: Url = "",
    api_key: ApiKey = "",
    config: Config = None,
    version: Annotated[  # noqa: ARG001 (its callback prints it before any command is resolved)
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """AIMA: inference infrastructure that AI agents run."""
    for name, value in (("AIMA_URL", url), ("AIMA_API_KEY", api_key), ("AIMA_CONFIG", str(config or ""))):
        if value:
            os.environ[name] = value  # commands read these when their own option is omitted


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # the disk under stdout is full or broken

# typer vendors click and exports only subclasses of its UsageError
_UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line and exit: 0 for success, 1 for a failure, 2 for bad input, 130 for Ctrl-C."""
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:  # `aima events | head`
        _discard_stdout()
        code = 0
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _discard_stdout()
        err.print(f"the answer cannot be written: {error.strerror}", markup=False, highlight=False)
        code = 1
    sys.exit(code)


def _run() -> int:
    """Run the command line and return the exit code."""
    try:
        return app(prog_name="aima", standalone_mode=False) or 0
    except typer.Abort:
        err.print("[dim]stopped[/]")
        return 130
    except KeyboardInterrupt:
        return 130
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # typer has printed the help
            return 0
        if suggestions := getattr(error, "possibilities", None):
            error.possibilities = suggestions[:1]
        if _requested_format() is Format.TABLE:
            error.show()
        else:
            failure(InvalidRequest(error.format_message(), reason="USAGE"), _requested_format())
        return int(error.exit_code)
    except AimaError as error:
        failure(error, _requested_format())
        return 2 if isinstance(error, InvalidRequest) else 1


def _discard_stdout() -> None:
    """Send all further output to /dev/null, so that the flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _requested_format() -> Format:
    """Return the format after -o or --output, even if the command line could not be parsed."""
    words = sys.argv[1:]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        value = {"-o": following, "--output": following}.get(word, word.removeprefix("--output=").removeprefix("-o"))
        if word.startswith(("-o", "--output")) and value in list(Format):
            return Format(value)
    return Format.TABLE


if __name__ == "__main__":
    main()
