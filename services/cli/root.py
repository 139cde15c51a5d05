"""The root group: the built-in commands, and one group for each domain on the bus.

The group queries the bus only for `aima --help`, and for a command that is not built in. Only then does it import the
modules that turn units into commands.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from typing import Any

from typer.core import TyperGroup

from aima_core.errors import AimaError, InvalidRequest
from services.cli import built_in
from services.cli.built_in import BUILT_IN


class Aima(TyperGroup):
    """The root group."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the built-in commands and, if the bus answers quickly, of the domains."""
        own = list(BUILT_IN)
        with contextlib.suppress(AimaError):
            return own + [name for name in self._domains(ctx) if name not in own]
        return own

    @staticmethod
    def _check_url(ctx: Any, name: str) -> None:
        """Raise InvalidRequest if `--url` is set for a command that cannot use a gateway. AIMA_URL is ignored."""
        url = ctx.params.get("url")
        if BUILT_IN[name].local and url and url != os.environ.get("AIMA_URL") and not ctx.resilient_parsing:
            hint = f"; the gateway sends events at {url.rstrip('/')}/api/v2/events" if name == "events" else ""
            raise InvalidRequest(
                f"aima {name} uses this machine and its bus, so it takes no --url{hint}", reason="LOCAL_COMMAND"
            )

    @staticmethod
    def _domains(ctx: Any) -> list[str]:
        from services.cli.units import groups

        return groups.listed(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help. A thread imports the drawing code while the bus is queried: both take about equally long."""
        drawing = threading.Thread(target=importlib.import_module, args=("typer.rich_utils",))
        drawing.start()
        with contextlib.suppress(AimaError):
            self._domains(ctx)
        drawing.join()
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that `args` names. Stores `args` in the context: they may contain a gateway's URL."""
        ctx.args = args
        if args[0] in BUILT_IN:
            self._check_url(ctx, args[0])
            return args[0], built_in.load(args[0]), args[1:]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the group of a domain; for a built-in command, only its name and description."""
        if cmd_name in BUILT_IN:
            return built_in.summary(cmd_name)
        from services.cli.units import groups

        return groups.find(ctx, cmd_name, list(BUILT_IN))
