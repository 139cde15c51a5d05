"""Reads the settings from the TOML file and the environment.

The file overrides the defaults; a variable `AIMA_<SECTION>_<KEY>` overrides the file. If a key is unknown or a value is
invalid, the process does not start. The error names the file, the line, the key and the expected value.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aima_core.bus.address import DEFAULT_PORT, URL_FILE, published_url
from aima_core.errors import InvalidRequest, ValidationFailed
from aima_core.system.node import default_node
from aima_core.toml_lines import Path as TomlPath
from aima_core.toml_lines import line_of, lines

_ALIASES = {"AIMA_API_KEYS": "AIMA_GATEWAY_API_KEYS"}  # additional, shorter names of variables


class Section(BaseModel):
    """One section of the settings file. A domain derives its own section from this class."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NatsSettings(Section):
    """The settings of the bus: its server, and the user of this process."""

    url: str = Field("", description="URL of a NATS server; empty: the server that `aima up` starts.")
    port: int = Field(
        0, ge=0, le=65535, description="Port of the server that `aima up` starts; 0: 4222 or the next free port."
    )
    users: bool = Field(
        False, description="Whether the server that `aima up` starts requires users; see docs/bus-users.md."
    )
    user: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_-]*$",
        description="User name on the bus; empty: the domain's name, or `operator` for the command line.",
    )
    password_file: str = Field(
        "", description="File with the user's password; empty: the user's file in nats/users/ of the data folder."
    )


class LogSettings(Section):
    """The log that each process writes to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of messages that the log contains."
    )


class General(Section):
    """The keys at the top of the file, outside any section."""

    data: str = Field("~/.aima", description="Folder for all of AIMA's data.")
    node: str = Field(
        default_factory=default_node,
        pattern=r"^[A-Za-z0-9-]{1,63}$",
        description="Name of this machine on the bus; default: the host's name.",
    )


CORE_SECTIONS: Mapping[str, type[Section]] = {"nats": NatsSettings, "log": LogSettings}


@dataclass(frozen=True)
class Settings:
    """All settings of a process. `file` is the path of the settings file, even if the file does not exist."""

    data: Path
    node: str
    nats: NatsSettings
    log: LogSettings
    sections: Mapping[str, Section]
    file: Path
    origins: Mapping[str, str]
    """The sources of all values that are not defaults, by `section.key`. A source is a variable, or a file and line."""

    def of(self, domain: str) -> Any:
        """Return a domain's own section, or None if the section was not loaded."""
        return self.sections.get(domain)


def load(
    sections: Mapping[str, type[Section]],
    *,
    path: Path | None = None,
    environ: Mapping[str, str] | None = None,
    partial: bool = False,
) -> Settings:
    """Read all settings. `path` is the file named with `--config`.

    Raises ValidationFailed if the file is missing or settings are invalid; the error names every invalid setting.
    Raises InvalidRequest if the file cannot be read or is not TOML. With `partial`, sections that are not in `sections`
    are not checked.
    """
    environ = os.environ if environ is None else environ
    sources = _Sources(_file(path, environ))
    models = {**CORE_SECTIONS, **sections}
    sources.overlay(environ, models)
    for key, value in sources.values.items():
        unchecked = partial and isinstance(value, dict)
        if key not in models and key not in General.model_fields and not unchecked:
            known = ", ".join(sorted([*General.model_fields, *models]))
            sources.add_fault((key,), f"unknown; expected one of {known}")
    general = sources.check(General)
    checked: dict[str, Any] = {name: sources.check(model, name) for name, model in models.items()}
    sources.raise_faults()
    data = Path(general.data).expanduser().absolute()
    nats, log, origins = checked.pop("nats"), checked.pop("log"), sources.origins()
    if not nats.url:
        running_url = published_url(data)
        if running_url:
            origins["nats.url"] = str(data / URL_FILE)
        nats = nats.model_copy(update={"url": running_url or f"nats://127.0.0.1:{nats.port or DEFAULT_PORT}"})
    return Settings(data, general.node, nats, log, checked, sources.file, origins)


def chosen_url(environ: Mapping[str, str] | None = None, path: Path | None = None) -> str:
    """Return the NATS URL from the environment or the file. "" means that `aima up` starts a server."""
    environ = os.environ if environ is None else environ
    nats = _Sources(_file(path, environ)).values.get("nats", {})
    return environ.get("AIMA_NATS_URL") or (str(nats.get("url", "")) if isinstance(nats, dict) else "")


def variable(section: str, key: str) -> str:
    """Return the name of the environment variable that sets a key. `section` is "" for a key outside any section."""
    return "_".join(filter(None, ("AIMA", section, key))).upper()


def _file(path: Path | None, environ: Mapping[str, str]) -> Path:
    chosen = path or (Path(environ["AIMA_CONFIG"]) if environ.get("AIMA_CONFIG") else None)
    if chosen and not chosen.is_file():
        raise ValidationFailed(f"{chosen}: the file does not exist", reason="NO_CONFIG", file=str(chosen))
    home = Path(environ.get("AIMA_DATA") or "~/.aima").expanduser()
    return chosen or home / "config.toml"


class _Sources:
    """The values of the file and the environment, with the source of each value and all faults."""

    def __init__(self, file: Path) -> None:
        """Read the file, if it exists. Raises InvalidRequest if the file is not TOML or cannot be read."""
        self.file = file
        self._faults: list[ValidationFailed] = []
        self._variables: dict[TomlPath, str] = {}
        try:
            text = file.read_text()
            self.values = tomllib.loads(text)
        except (FileNotFoundError, NotADirectoryError):
            text, self.values = "", {}
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{file}: cannot be read: {error}", reason="BAD_CONFIG", file=str(file)) from error
        except tomllib.TOMLDecodeError as error:
            raise InvalidRequest(f"{file}: not TOML: {error}", reason="BAD_CONFIG", file=str(file)) from error
        self._lines = lines(text)

    def overlay(self, environ: Mapping[str, str], models: Mapping[str, type[Section]]) -> None:
        """Override the file with the environment. Ignores variables of sections that are not in `models`."""
        # aliases come first, so the full name of a variable overrides its alias
        for name in sorted(environ, key=lambda name: name not in _ALIASES):
            section, _, key = _ALIASES.get(name, name).removeprefix("AIMA_").lower().partition("_")
            if not name.startswith("AIMA_") or environ[name] == "":
                continue
            if not key and section in General.model_fields:
                self.values[section] = environ[name]
                self._variables[section,] = name
            elif key and section in models:
                self._set(section, key, name, environ[name], models[section])

    def _set(self, section: str, key: str, variable_name: str, value: str, model: type[Section]) -> None:
        if key not in model.model_fields:
            message = f"{variable_name}: unknown; [{section}] has {', '.join(model.model_fields)}"
            self._add(message, key=variable_name)
            return
        values = self.values.setdefault(section, {})
        if isinstance(values, dict):
            values[key] = value
            self._variables[section, key] = variable_name

    def check(self, model: type[Section], section: str = "") -> Any:
        """Return a validated section, or None if the section has faults. `raise_faults` raises the faults."""
        if section:
            values = self.values.get(section, {})
        else:
            values = {key: value for key, value in self.values.items() if key in model.model_fields}
        try:
            return model.model_validate(values)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                expected = each["msg"]
                if each["type"] == "extra_forbidden":
                    expected = f"unknown; expected one of {', '.join(model.model_fields)}"
                self.add_fault((*([section] if section else []), *each["loc"]), expected)
            return None

    def raise_faults(self) -> None:
        """Raise one ValidationFailed for all faults. Does nothing if there are none."""
        if len(self._faults) == 1:
            raise self._faults[0]
        if self._faults:
            messages = "\n  ".join(fault.message for fault in self._faults)
            raise ValidationFailed(
                f"{len(self._faults)} settings are wrong:\n  {messages}",
                reason="BAD_CONFIG",
                faults=[fault.details for fault in self._faults],
            )

    def add_fault(self, path: TomlPath, expected: str) -> None:
        """Record that the value at a path is invalid. The message names its variable, or its file and line."""
        key = ".".join(map(str, path))
        if variable_name := self._variables.get(path[:2]):
            self._add(f"{variable_name}: {key}: {expected}", key=key, expected=expected)
            return
        line = line_of(self._lines, path)
        place = f"{self.file}:{line}" if line else f"{self.file} or the environment"
        message = f"{place}: {key}: {expected}"
        self._add(message, file=str(self.file), line=line, key=key, expected=expected)

    def _add(self, message: str, **details: Any) -> None:
        self._faults.append(ValidationFailed(message, reason="BAD_CONFIG", **details))

    def origins(self) -> dict[str, str]:
        """Return the source of each value, by `section.key`."""
        sources = {path: f"{self.file}:{line}" for path, line in self._lines.items()} | self._variables
        return {".".join(map(str, path)): source for path, source in sources.items()}
