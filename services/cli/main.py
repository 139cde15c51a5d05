"""The command line: the root of all commands; turns errors into messages and exit codes.

Only answers go to stdout; progress, hints and errors go to stderr. The exit code is 0 only on success. `built_in.py`
lists the built-in commands. Any other command is the name of a domain on the bus: see `units/groups.py`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from aima_core.errors import AimaError, InvalidRequest
from services.cli.commands import version as version_command
from services.cli.door.session import session
from services.cli.plain_values import take_plain
from services.cli.root import Aima
from services.cli.shared_options import ApiKey, Config, Url
from services.cli.show.console import Format, dim, err
from services.cli.show.output import failure
from services.cli.single_options import refuse_repeats

app = typer.Typer(
    name="aima",
    cls=Aima,
    help="AIMA: inference infrastructure that AI agents run.",
    epilog="Each domain on the bus is a command too: aima service --help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # units/groups.py suggests commands and domains
)


def _print_version(requested: bool) -> None:
    if requested:
        version_command.version()
        raise typer.Exit


def show_help(
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...", help="Default: all commands.")] = None,
) -> None:
    """Show help for a command, as --help does: `aima help service start`."""
    typer.main.get_command(app).main([*(words or ()), "--help"], prog_name="aima", standalone_mode=False)


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


# typer vendors click and exports only subclasses of its UsageError
_UsageError: Any = typer.BadParameter.__bases__[0]


def run() -> int:
    """Run the command line and return the exit code."""
    try:
        with session():
            command = refuse_repeats(take_plain(typer.main.get_command(app)))
            return int(command.main(prog_name="aima", standalone_mode=False) or 0)
    except typer.Abort:
        err.print(dim("stopped"))
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


def _requested_format() -> Format:
    """Return the output format that -o or --output sets, even if the command line cannot be parsed."""
    words = sys.argv[1:]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        value = {"-o": following, "--output": following}.get(word, word.removeprefix("--output=").removeprefix("-o"))
        if word.startswith(("-o", "--output")) and value in list(Format):
            return Format(value)
    return Format.TABLE


if __name__ == "__main__":  # otherwise `python -m services.cli.main` would do nothing and succeed
    import runpy

    runpy.run_module("services.cli.entry", run_name="__main__")
