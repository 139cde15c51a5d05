"""The schema of a manifest: a file that describes one engine. `manifest.py` loads and uses the files."""

from __future__ import annotations

import math
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from services.model.units import ModelFormat, ModelType

RESERVED = frozenset({"python", "model_path", "model_name", "port", "host"})
"""Placeholders that every start fills in. In addition, each option is a placeholder."""

Value = bool | int | float | str
Device = Literal["cpu", "gpu"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,59}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Option(_Part):
    """An option of the engine, which the `config` of a start may set."""

    about: str = Field(description="The effect of the option, with its unit.")
    type: Literal["int", "float", "bool", "str"] = Field(description="JSON type of the value.")
    default: Value | None = Field(
        None, description="Default value. For an int, `cpu_count` means the number of usable processors."
    )
    minimum: float | None = Field(None, description="Smallest accepted number.")
    maximum: float | None = Field(None, description="Largest accepted number.")
    choices: tuple[str, ...] | None = Field(None, description="Accepted texts.")
    args: tuple[str, ...] = Field(
        (), description="Arguments for the command if the option has a value; for a bool, if the value is true."
    )

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        default = self.value()
        if default is not None and not self.accepts(default):
            raise ValueError(f"the default must be {self.expected()}")
        return self

    def accepts(self, value: object) -> bool:
        match self.type:
            case "bool":
                return isinstance(value, bool)
            case "str":
                # A command line and an environment, in which the value is used, cannot contain a zero byte.
                return isinstance(value, str) and "\0" not in value and (self.choices is None or value in self.choices)
            case "int":
                return isinstance(value, int) and not isinstance(value, bool) and self._bounded(value)
            case "float":
                return isinstance(value, int | float) and not isinstance(value, bool) and self._bounded(value)

    def _bounded(self, value: float) -> bool:
        low, high = self.minimum, self.maximum
        return math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)

    def expected(self) -> str:
        """Return a description of the accepted values, such as "a whole number of at least 1"."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}[self.type]
        low = None if self.minimum is None else f"at least {self.minimum:.15g}"
        high = None if self.maximum is None else f"at most {self.maximum:.15g}"
        return " and ".join(filter(None, (f"{kind} of {low or high}" if low or high else kind, high if low else None)))

    def value(self) -> Value | None:
        """Return the default value on this machine."""
        if self.type == "int" and self.default == "cpu_count":
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.default


class Health(_Part):
    """The health check of the engine."""

    path: str = Field(pattern="^/", description="Path that answers GET with 2xx once the model is loaded.")
    interval: float = Field(0.5, gt=0, le=60, description="Seconds between two checks.")
    timeout: float = Field(
        1.0,
        gt=0,
        le=60,
        description="Seconds until a check fails. Three failures in a row make the instance unhealthy.",
    )


class Features(_Part):
    """The features and limits of the engine. `engine.features` returns the same fields."""

    supports_streaming: bool = Field(False, description="Streams tokens.")
    supports_batch: bool = Field(False, description="Accepts several inputs in one request.")
    supports_tools: bool = Field(False, description="Calls tools, if the model supports them.")
    supports_embedding: bool = Field(False, description="Embeds texts.")
    supports_multimodal: bool = Field(False, description="Accepts images or audio in a chat.")
    supports_quantization: bool = Field(False, description="Runs quantised weights.")
    cancels_whole: bool = Field(
        True, description="Stops generating when the client of a request without streaming disconnects."
    )
    max_concurrent: int = Field(1, ge=1, description="Maximum number of requests processed at once.")
    max_context_length: int = Field(0, ge=0, description="Maximum context, in tokens; 0 if the engine has no context.")


class Failure(_Part):
    """A known failure of the engine: a pattern of its log line, and the error to report."""

    pattern: str = Field(description="A regular expression that AIMA searches for in each line of the log.")
    error_code: str = Field(pattern="^[A-Z][A-Z_]*$", description="Error code to report, such as OUT_OF_MEMORY.")
    message: str = Field(
        description="Cause and remedy, for people. `{name}` inserts the text of the group `name` of the pattern."
    )

    @model_validator(mode="after")
    def _groups_exist(self) -> Self:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"the pattern must be a regular expression: {error}") from None
        if unknown := placeholders([self.message]) - set(groups):
            raise ValueError(f"the message may only name groups of the pattern, not {', '.join(sorted(unknown))}")
        return self


class Manifest(_Part):
    """An engine: the models that it serves, the command line of its process, its health check."""

    name: Name = Field(description="Name of the engine in all units.")
    about: str = Field(description="One sentence for people who choose an engine.")
    type: ModelType = Field(description="Main type of model; one of `model_types`.")
    version: str = Field(description="Version that the manifest was tested with.")
    runtime: Literal["process"] = Field("process", description="Runtime that starts the engine.")
    package: str | None = Field(None, description="PyPI package of the engine; null if it has none.")
    module: str | None = Field(None, description="Module that can be imported once the package is installed.")
    command: tuple[str, ...] = Field(min_length=1, description="Program and arguments; each is a template.")
    options: dict[Name, Option] = Field(default={}, description="Options that the config of a start may set.")
    env: dict[str, str] = Field(default={}, description="Environment of the process; the values are templates.")
    presets: dict[ModelType, dict[str, Value]] = Field(
        default={}, description="Options by type of model; the config of a start overrides them."
    )
    health: Health = Field(description="Health check.")
    dialect: Literal["openai"] = Field("openai", description="API of the engine.")
    endpoints: tuple[str, ...] = Field(description="Supported paths of the engine's API.")
    model_types: tuple[ModelType, ...] = Field(min_length=1, description="Types of model that the engine serves.")
    formats: tuple[ModelFormat, ...] = Field(
        min_length=1, description="Formats that the engine loads. A format that AIMA does not read may have any name."
    )
    features: Features = Field(description="Features and limits.")
    devices: tuple[Device, ...] = Field(min_length=1, description="Devices that the engine runs on.")
    preference: dict[Device, int] = Field(
        default={}, description="Rank by device; AIMA chooses the engine with the highest rank."
    )
    failures: tuple[Failure, ...] = Field(
        (), description="Known failures; AIMA searches the log of a failed run for them in this order."
    )

    @field_validator("command", "env")
    @classmethod
    def _templates(cls, value: Sequence[str] | Mapping[str, str]) -> Sequence[str] | Mapping[str, str]:
        placeholders(value.values() if isinstance(value, Mapping) else value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if taken := RESERVED & set(self.options):
            raise ValueError(f"options cannot be called {', '.join(sorted(taken))}: every start uses these names")
        if self.type not in self.model_types:
            raise ValueError(f"the type {self.type} must be one of the model_types")
        always = {name for name, option in self.options.items() if option.default is not None}
        templates: list[tuple[str, Iterable[str], set[str]]] = [
            ("command", self.command, always),
            ("env", self.env.values(), always),
            *((f"options.{name}.args", option.args, always | {name}) for name, option in self.options.items()),
        ]
        for where, texts, known in templates:
            if unknown := placeholders(texts) - RESERVED - known:
                raise ValueError(
                    f"{where} uses {', '.join(f'{{{name}}}' for name in sorted(unknown))}; "
                    f"the known names are {', '.join(sorted(RESERVED | known))} "
                    "(an option without a default cannot be used here)"
                )
        for model_type, preset in self.presets.items():
            if faults := self.faults(preset):
                raise ValueError(f"presets.{model_type}.{faults[0]['field']} must be {faults[0]['expected']}")
        return self

    def faults(self, config: Mapping[str, object]) -> list[dict[str, str]]:
        """Return the field and the expected value of each fault of a config.

        The result does not contain the values in the config, because they may be secrets.
        """
        known = ", ".join(sorted(self.options)) or "none"
        faults = []
        for name, value in config.items():
            option = self.options.get(name)
            if option is None:
                faults.append({"field": name, "expected": f"an option of {self.name}: {known}"})
            elif not option.accepts(value):
                faults.append({"field": name, "expected": option.expected()})
        return faults


def placeholders(templates: Iterable[str]) -> set[str]:
    """Return the names in braces. Raises ValueError if braces contain anything but a name, such as a format."""
    names = set()
    for template in templates:
        for _, name, form, conversion in string.Formatter().parse(template):
            if name is None:
                continue
            if not name.isidentifier() or form or conversion:
                raise ValueError(
                    f"{template!r} is not a template: braces may contain only a name; write {{{{ for a brace"
                )
            names.add(name)
    return names
