"""Refuses an option that is given more than once. The parser would use only the last value and ignore the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from typer.core import TyperGroup


def refuse_repeats(command: Any) -> Any:
    """Make a command and its subcommands fail if an option with a single value is repeated; return the command."""
    make_parser = command.make_parser

    def make_strict_parser(ctx: Any) -> Any:
        parser = make_parser(ctx)
        parse_args = parser.parse_args

        def parse(args: list[str]) -> Any:
            values, rest, order = parse_args(args=args)
            if not ctx.resilient_parsing:
                _check(ctx, order)
            return values, rest, order

        parser.parse_args = parse
        return parser

    command.make_parser = make_strict_parser
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            refuse_repeats(inner)
    return command


def _check(ctx: Any, order: Iterable[Any]) -> None:
    """Fail if an option with a single value is among the parsed parameters more than once."""
    seen = set()
    for param in order:
        if param.param_type_name != "option" or param.multiple or param.count:
            continue
        if param.name in seen:
            ctx.fail(f"Option {'/'.join(param.opts)} is given more than once; give it once.")
        seen.add(param.name)
