"""What stands in a manifest file. Adding an engine is adding such a file; `manifest.py` reads and uses them."""

from __future__ import annotations

import math
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

GIVEN = frozenset({"python", "model_path", "model_name", "port", "host"})
"""The placeholders that a start fills in; every option is one more."""

Value = bool | int | float | str
Device = Literal["cpu", "gpu"]
ModelType = Literal["llm", "vlm", "asr", "tts", "embedding", "diffusion", "video_gen", "detection", "rerank"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,59}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Option(_Part):
    """A setting of the engine that the `config` of a start may give."""

    about: str = Field(description="What it sets, with its unit.")
    type: Literal["int", "float", "bool", "str"] = Field(description="The JSON type that is accepted.")
    default: Value | None = Field(
        None, description="Used when nothing is given; `cpu_count` for an int: the processors that may be used."
    )
    minimum: float | None = Field(None, description="The smallest number that is accepted.")
    maximum: float | None = Field(None, description="The largest number that is accepted.")
    choices: tuple[str, ...] | None = Field(None, description="The texts that are accepted.")
    args: tuple[str, ...] = Field((), description="Appended to the command when it is set (a bool: when it is true).")

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        default = self.value()
        if default is not None and not self.accepts(default):
            raise ValueError(f"the default must be {self.expected()}")
        return self

    def accepts(self, value: object) -> bool:
        """Return whether the value is one that the option may have."""
        match self.type:
            case "bool":
                return isinstance(value, bool)
            case "str":
                # What is given ends up in a command line and an environment, where a zero byte cannot be.
                return isinstance(value, str) and "\0" not in value and (self.choices is None or value in self.choices)
            case "int":
                return isinstance(value, int) and not isinstance(value, bool) and self._bounded(value)
            case "float":
                return isinstance(value, int | float) and not isinstance(value, bool) and self._bounded(value)

    def _bounded(self, value: float) -> bool:
        low, high = self.minimum, self.maximum
        return math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)

    def expected(self) -> str:
        """Return in words what is accepted."""
        if self.choices is not None:
            return "one of " + ", ".join(self.choices)
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}[self.type]
        low = None if self.minimum is None else f"at least {self.minimum:.15g}"
        high = None if self.maximum is None else f"at most {self.maximum:.15g}"
        return " and ".join(filter(None, (f"{kind} of {low or high}" if low or high else kind, high if low else None)))

    def value(self) -> Value | None:
        """Return the default on this machine."""
        if self.type == "int" and self.default == "cpu_count":
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.default


class Health(_Part):
    """How to see that the engine answers."""

    path: str = Field(pattern="^/", description="Answers GET with 200 when the model is loaded.")
    interval: float = Field(0.5, gt=0, le=60, description="Seconds between two looks.")
    timeout: float = Field(
        1.0, gt=0, le=60, description="Seconds until a look counts as failed; three make it unhealthy."
    )


class Features(_Part):
    """What the engine can do; the fields of `engine.features`."""

    supports_streaming: bool = Field(False, description="Sends tokens as they come.")
    supports_batch: bool = Field(False, description="Takes several inputs in one request.")
    supports_tools: bool = Field(False, description="Calls tools, where the model can.")
    supports_embedding: bool = Field(False, description="Embeds texts.")
    supports_multimodal: bool = Field(False, description="Takes images or audio in a chat.")
    supports_quantization: bool = Field(False, description="Runs quantised weights.")
    cancels_whole: bool = Field(
        True, description="Stops working for a client who leaves, also where the answer is not streamed."
    )
    max_concurrent: int = Field(1, ge=1, description="Requests worked on at once, at most.")
    max_context_length: int = Field(ge=1, description="Tokens of context, at most.")


class Failure(_Part):
    """A way to fail that shows in the log."""

    pattern: str = Field(description="A regular expression, searched in each line of the log.")
    error_code: str = Field(pattern="^[A-Z][A-Z_]*$", description="What to report, such as OUT_OF_MEMORY.")
    message: str = Field(description="For a person: what is wrong, what helps; {group} names a group of the pattern.")

    @model_validator(mode="after")
    def _groups_exist(self) -> Self:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"the pattern must be a regular expression: {error}") from None
        if unknown := placeholders([self.message]) - set(groups):
            raise ValueError(f"the message names groups that the pattern has not: {', '.join(sorted(unknown))}")
        return self


class Manifest(_Part):
    """An engine: what it serves, how its process is started, how it is watched."""

    name: Name = Field(description="Names the engine everywhere.")
    about: str = Field(description="One sentence for people who choose an engine.")
    type: ModelType = Field(description="What it is mainly for; one of `model_types`.")
    version: str = Field(description="The version that the manifest was written for and tried with.")
    runtime: Literal["process"] = Field("process", description="What runs it.")
    package: str | None = Field(None, description="The PyPI package that brings it; null when it is no Python package.")
    module: str | None = Field(None, description="The module that can be imported once the engine is installed.")
    command: tuple[str, ...] = Field(min_length=1, description="Program and arguments; each a template.")
    options: dict[Name, Option] = Field(default={}, description="What the caller's config may set.")
    env: dict[str, str] = Field(default={}, description="Environment of the process; the values are templates.")
    presets: dict[ModelType, dict[str, Value]] = Field(
        default={}, description="Options that a type of model needs; the caller's config goes before them."
    )
    health: Health = Field(description="How to see that it answers.")
    dialect: Literal["openai"] = Field("openai", description="The API that it speaks.")
    endpoints: tuple[str, ...] = Field(description="The paths of that API that it answers.")
    model_types: tuple[ModelType, ...] = Field(min_length=1, description="The types of model that it serves.")
    formats: tuple[str, ...] = Field(min_length=1, description="The file formats that it reads.")
    features: Features = Field(description="What it can do.")
    devices: tuple[Device, ...] = Field(min_length=1, description="Where it runs.")
    preference: dict[Device, int] = Field(default={}, description="The higher, the sooner it is chosen on that device.")
    failures: tuple[Failure, ...] = Field((), description="Tried in this order on the log of a run that failed.")

    @field_validator("command", "env")
    @classmethod
    def _templates(cls, value: Sequence[str] | Mapping[str, str]) -> Sequence[str] | Mapping[str, str]:
        placeholders(value.values() if isinstance(value, Mapping) else value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if taken := GIVEN & set(self.options):
            raise ValueError(f"options cannot be called {', '.join(sorted(taken))}: the start fills these in")
        if self.type not in self.model_types:
            raise ValueError(f"the type {self.type} must be one of the model_types")
        always = {name for name, option in self.options.items() if option.default is not None}
        templates: list[tuple[str, Iterable[str], set[str]]] = [
            ("command", self.command, always),
            ("env", self.env.values(), always),
            *((f"options.{name}.args", option.args, always | {name}) for name, option in self.options.items()),
        ]
        for where, texts, known in templates:
            if unknown := placeholders(texts) - GIVEN - known:
                raise ValueError(
                    f"{where} uses {', '.join(f'{{{name}}}' for name in sorted(unknown))}; "
                    f"known are {', '.join(sorted(GIVEN | known))} (an option needs a default to stand there)"
                )
        for model_type, preset in self.presets.items():
            if faults := self.faults(preset):
                raise ValueError(f"presets.{model_type}.{faults[0]['field']} must be {faults[0]['expected']}")
        return self

    def faults(self, config: Mapping[str, object]) -> list[dict[str, str]]:
        """Return what is wrong with the config: field and what was expected; never the value, it may be a secret."""
        known = ", ".join(sorted(self.options)) or "none"
        found = []
        for name, value in config.items():
            option = self.options.get(name)
            if option is None:
                found.append({"field": name, "expected": f"an option of {self.name}: {known}"})
            elif not option.accepts(value):
                found.append({"field": name, "expected": option.expected()})
        return found


def placeholders(templates: Iterable[str]) -> set[str]:
    """Return the names in braces. Raises ValueError for anything but plain names: a template computes nothing."""
    found = set()
    for template in templates:
        for _, name, form, conversion in string.Formatter().parse(template):
            if name is None:
                continue
            if not name.isidentifier() or form or conversion:
                raise ValueError(f"{template!r} is no template: only {{name}} may stand in braces, {{{{ for a brace")
            found.add(name)
    return found
