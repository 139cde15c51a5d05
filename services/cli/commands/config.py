"""`aima config`: the settings in effect, their sources, and a check of a settings file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from aima_core.settings import CORE_SECTIONS, General, Section, Settings, load, variable
from services.cli import domains
from services.cli.door import client_settings
from services.cli.shared_options import Config, Output
from services.cli.show.console import Format, out
from services.cli.show.output import document
from services.cli.show.tables import rows

app = typer.Typer(help="Show the settings and their sources; check a settings file.", no_args_is_help=True)

DEFAULT = "default"
_PASSWORD = re.compile(r"(?<=://)([^/@]*):[^/@]*@")  # the user and password in a URL
_MASK = "**********"  # the same text as pydantic's for a secret


@app.command()
def show(output: Output = Format.TABLE, config: Config = None) -> None:
    """Show every setting with its value and its source; secrets are masked."""
    settings = load(sections(), path=config)
    items = list(shown(settings))
    if output is not Format.TABLE:
        document({"file": str(settings.file), "settings": items}, output)
        return
    rows([{**item, "value": _text(item["value"])} for item in items], ("key", "value", "from"))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A settings file; environment variables are ignored.")],
    output: Output = Format.TABLE,
) -> None:
    """Check a settings file: report every fault with its line, or list the settings in the file."""
    settings = load(sections(), path=file, environ={})
    keys = [item["key"] for item in shown(settings) if str(item["from"]).startswith(f"{file}:")]
    document({"file": str(file), "valid": True, "sets": keys}, output)


@app.command()
def path(output: Output = Format.TABLE, config: Config = None) -> None:
    """Print the path of the settings file, even if the file does not exist."""
    file = client_settings.read(config).file
    if output is Format.TABLE:
        out.print(str(file))
    else:
        document({"path": str(file), "exists": file.is_file()}, output)


def sections() -> dict[str, type[Section]]:
    """Return the settings class of every domain, by name."""
    return {name: domains.load(name).settings for name in domains.names()}


def fields(domain_sections: dict[str, type[Section]]) -> Iterator[tuple[str, str, Any]]:
    """Yield section, key and pydantic field of every setting: those of the core, then those of the given sections."""
    models: dict[str, type[BaseModel]] = {"": General, **CORE_SECTIONS, **domain_sections}
    for section, model in models.items():
        for key, field in model.model_fields.items():
            yield section, key, field


def shown(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield every setting: its key, environment variable, value and source."""
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
    """Return the value. If it contains a URL, mask the URL's password."""
    return _PASSWORD.sub(rf"\1:{_MASK}@", value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(map(str, value))
        case _:
            return str(value)
