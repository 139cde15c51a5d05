"""`aima config`: what is set, by whom, and whether a file would do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from aima_core.settings import CORE_SECTIONS, General, Section, Settings, load, variable
from services.cli import domains
from services.cli.door import bus_door
from services.cli.shared_options import Config, Output
from services.cli.show.console import Format, out
from services.cli.show.output import document
from services.cli.show.tables import rows

app = typer.Typer(help="What is set, by whom, and whether a file would do.", no_args_is_help=True)

DEFAULT = "default"
_PASSWORD = re.compile(r"(?<=://)([^/@]*):[^/@]*@")  # in a URL
_MASK = "**********"  # as pydantic masks its secrets


@app.command()
def show(output: Output = Format.TABLE, config: Config = None) -> None:
    """Show every setting, its value, and where that is from; secrets are masked."""
    settings = load(sections(), path=config)
    items = list(shown(settings))
    if output is not Format.TABLE:
        document({"file": str(settings.file), "settings": items}, output)
        return
    rows([{**item, "value": _text(item["value"])} for item in items], ("key", "value", "from"))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A settings file; the environment does not count.")],
    output: Output = Format.TABLE,
) -> None:
    """Tell whether a settings file would do: what is wrong, with its line, or what it sets."""
    settings = load(sections(), path=file, environ={})
    set_here = [item["key"] for item in shown(settings) if str(item["from"]).startswith(f"{file}:")]
    document({"file": str(file), "valid": True, "sets": set_here}, output)


@app.command()
def path(output: Output = Format.TABLE, config: Config = None) -> None:
    """Print where the settings file is, or would be."""
    file = bus_door.settings(config).file
    if output is Format.TABLE:
        out.print(str(file), highlight=False, markup=False)
    else:
        document({"path": str(file), "exists": file.is_file()}, output)


def sections() -> dict[str, type[Section]]:
    """Return the settings of every domain, by name."""
    return {name: domains.load(name).settings for name in domains.names()}


def fields(own: dict[str, type[Section]]) -> Iterator[tuple[str, str, Any]]:
    """Yield every setting that there is, of the core and of these sections: its section, key and pydantic field."""
    models: dict[str, type[BaseModel]] = {"": General, **CORE_SECTIONS, **own}
    for section, model in models.items():
        for key, field in model.model_fields.items():
            yield section, key, field


def shown(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield every setting as people see it: key, variable, value, and where the value is from."""
    core = {"": General(data=str(settings.data), node=settings.node), "nats": settings.nats, "log": settings.log}
    values = {name: model.model_dump(mode="json") for name, model in {**core, **settings.sections}.items()}
    for section, key, _ in fields({name: type(model) for name, model in settings.sections.items()}):
        name = f"{section}.{key}" if section else key
        yield {
            "key": name,
            "variable": variable(section, key),
            "value": _masked(values[section][key]),
            "from": settings.origins.get(name, DEFAULT),
        }


def _masked(value: Any) -> Any:
    """Return a value without the password that a URL in it may hold."""
    return _PASSWORD.sub(rf"\1:{_MASK}@", value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)
