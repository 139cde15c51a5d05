"""The base classes of units: Command, Query, Event and Resource.

Commands and queries come from outside, so they are pydantic models, which validate their input. AIMA itself creates
events, so they are msgspec structs, which are faster. Everything about a unit is in its class: the class keywords have
its name and limits, the fields are its schema, and the docstring is its description. Discovery, docs, doors and the
command line are generated from the class.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from aima_core.errors import AimaError, ValidationFailed
from aima_core.risk import Risk
from aima_core.stream_fields import Ref as Ref
from aima_core.stream_fields import StreamVersion as StreamVersion
from aima_core.stream_fields import View as View
from aima_core.stream_fields import reference_fields

LARGEST = 2**63 - 1  # the largest integer in SQLite; limits every integer that is stored or compared in SQLite
_NOT_IN_A_TOKEN = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_TOKEN = 200  # characters; nats-server closes the connection on a subject of more than 4096
_MOST_LISTED = 20  # the most invalid fields that an error lists
_LONGEST_NAME = 100  # characters of a field name in an error; limited, because the caller chooses the name


class Success(View):
    """The answer of a command without a result."""

    success: bool = Field(True, description="Always true; a refused command gets an error reply.")


_LARGEST_OPTIONS = 64 * 1024  # characters of JSON


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options. Raises ValueError if they have an infinite number or NaN, or more than 64 Ki characters."""
    try:
        size = len(json.dumps(options, allow_nan=False))
    except ValueError:
        raise ValueError("numbers must be finite") from None
    if size > _LARGEST_OPTIONS:
        raise ValueError(f"must be at most {_LARGEST_OPTIONS} characters of JSON")
    return options


Options = Annotated[dict[str, Any], AfterValidator(_check_options)]
"""Free-form options. AIMA limits their size. The program that gets them, such as an engine, checks their values."""

Out = TypeVar("Out", bound=View)


class UnitSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The class keywords of a unit; `Unit` describes them."""

    name: str
    kind: Literal["command", "query"]
    risk: Risk
    stream: str | None
    timeout: float
    batches: bool
    idempotent: bool
    destructive: bool
    errors: tuple[type[AimaError], ...]
    events: tuple[type[Event], ...]
    examples: tuple[Mapping[str, Any], ...]
    references: tuple[str, ...]
    """The fields that refer to streams of the unit's own domain."""

    @property
    def domain(self) -> str:
        """The part of the name before the dot: `service` in `service.start`."""
        return self.name.partition(".")[0]

    @property
    def action(self) -> str:
        """The part of the name after the dot: `start` in `service.start`."""
        return self.name.partition(".")[2]


class Unit(BaseModel, Generic[Out]):
    """The input of a unit. `Out` is the type of its output. Instances are frozen. Unknown fields are refused.

    Class keywords:
      `unit`: the unit's name, such as `service.start`
      `stream`: the name of the field or property that returns the id of the unit's stream; a field must be a reference;
        absent for a command that starts a new stream
      `risk`: low, medium or high; by default medium for a command, low for a query
      `timeout`: seconds after which a call without a deadline fails
      `batches`: whether one message may hold several requests; only for units that answer at once
      `idempotent`: whether a repeat with the same input has no further effect; by default true for a query
      `destructive`: whether it ends or removes something; by default true for a command of high risk
      `errors`: the errors that it may refuse with
      `events`: the events that it may record
      `examples`: inputs for the documentation; tests validate them
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    spec: ClassVar[UnitSpec]
    output: ClassVar[type[View]]
    kind: ClassVar[Literal["command", "query"]]

    def __init_subclass__(cls, **_: Any) -> None:  # drops the class keywords: pydantic's hook below reads them
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(  # type: ignore[override]  # declares the class keywords that a unit may have
        cls,
        *,
        unit: str | None = None,
        stream: str | None = None,
        risk: Risk | None = None,
        timeout: float = 30.0,
        batches: bool = False,
        idempotent: bool | None = None,
        destructive: bool | None = None,
        errors: Sequence[type[AimaError]] = (),
        events: Sequence[type[Event]] = (),
        examples: Sequence[Mapping[str, Any]] = ({},),
    ) -> None:
        super().__pydantic_init_subclass__()
        if unit is None:
            return
        cls.spec = UnitSpec(
            name=unit,
            kind=cls.kind,
            risk=risk or ("medium" if cls.kind == "command" else "low"),
            stream=stream,
            timeout=timeout,
            batches=batches,
            idempotent=cls.kind == "query" if idempotent is None else idempotent,
            destructive=cls.kind == "command" and risk == "high" if destructive is None else destructive,
            errors=tuple(errors),
            events=tuple(events),
            examples=tuple(examples),
            references=reference_fields(cls.model_fields.items(), unit.partition(".")[0]),
        )
        for base in cls.__mro__:
            arguments = getattr(base, "__pydantic_generic_metadata__", {}).get("args")
            if arguments:
                cls.output = arguments[0]
                break

    @classmethod
    def description(cls) -> str:
        """The unit's docstring, unindented."""
        return inspect.cleandoc(cls.__doc__ or "")


class Command(Unit[Out]):
    """A unit that changes something: it appends events, which may cause effects outside."""

    kind = "command"


class Query(Unit[Out]):
    """A unit that only reads."""

    kind = "query"


class Page(BaseModel):
    """The paging fields of every list query."""

    limit: int = Field(100, ge=1, le=1000, description="Maximum number of items to return.")
    offset: int = Field(0, ge=0, le=LARGEST, description="Number of items to skip.")


class EventMeta(msgspec.StructMeta):
    """Adds two class keywords to events: `unit`, the event's type, and `stream`, the field that holds its stream's id.

    The class gets the attributes `unit`, `stream_field` and `stream_prefix`.
    """

    unit: str
    stream_field: str
    stream_prefix: str

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        unit: str | None = None,
        stream: str | None = None,
        **config: Any,
    ) -> Any:
        cls = super().__new__(mcs, name, bases, namespace, **config)
        if unit:
            cls.unit = unit
            cls.stream_prefix = f"{unit.partition('.')[0]}/"
        if stream:
            cls.stream_field = stream
        return cls


class Event(msgspec.Struct, metaclass=EventMeta, frozen=True, kw_only=True):
    """A recorded fact. A log keeps its events forever, so a release may only add fields that have a default."""

    unit: ClassVar[str]
    stream_field: ClassVar[str]
    stream_prefix: ClassVar[str]

    @property
    def stream(self) -> str:
        """The event's stream: domain, slash, id, such as `service/svc-1`."""
        return f"{self.stream_prefix}{getattr(self, self.stream_field)}"


def token(ident: str) -> str:
    """Return an id as one token of a subject or a key.

    Replaces every character that could split the subject or act as a wildcard, and cuts the token at 200 characters.
    """
    return _NOT_IN_A_TOKEN.sub("_", ident)[:_LONGEST_TOKEN] or "_"


def key_of(uri: str) -> str:
    """Return the key of an address in the resource bucket: `device.gpu-0.info` for `asms://device/gpu-0/info`."""
    return ".".join(token(part) for part in uri.removeprefix("asms://").split("/"))


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """An address that can be read and watched, such as `asms://service/{id}`. A query answers a read.

    `query` returns this query. Its argument is the `{id}`, or None for an address without `{id}`.
    `touched` returns the ids whose content an event changes. For an address without `{id}`, a non-empty list means that
    the event changes the content.
    `ids` returns the existing ids of this resource. Its argument is the ids of all streams of the domain.
    """

    uri: str
    about: str
    query: Callable[[str | None], Query[Any]]
    touched: Callable[[Any], Iterable[str]]
    ids: Callable[[Sequence[str]], Iterable[str]] = tuple

    def match(self, uri: str) -> tuple[bool, str | None]:
        """Return whether the address belongs to this resource, and its `{id}`."""
        if "{id}" not in self.uri:
            return uri == self.uri, None
        head, _, tail = self.uri.partition("{id}")
        matches = uri.startswith(head) and uri.endswith(tail) and len(uri) > len(head) + len(tail)
        ident = uri[len(head) : len(uri) - len(tail)] if matches else None
        return bool(ident) and "/" not in (ident or "/"), ident

    def key(self, ident: str | None) -> str:
        """Return the key in the resource bucket: `device.gpu-0.info` for gpu-0 of `asms://device/{id}/info`."""
        return key_of(self.uri.replace("{id}", token(ident or "")))


U = TypeVar("U", bound=Unit[Any])


def parse(unit: type[U], data: bytes | str) -> U:
    """Decode a unit's input from JSON. Raises ValidationFailed, with the invalid fields in `details.fields`."""
    try:
        return unit.model_validate_json(data or b"{}")
    except ValidationError as error:
        raise refusal(unit.spec.name, error) from None


def refusal(what: str, error: ValidationError) -> ValidationFailed:
    """Convert pydantic's error. The result lists the invalid fields, but not their values, which may be secret."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    fields = [
        {"field": ".".join(str(part) for part in fault["loc"])[:_LONGEST_NAME] or "(input)", "expected": fault["msg"]}
        for fault in faults[:_MOST_LISTED]
    ]
    summary = "; ".join(f"{field['field']}: {field['expected']}" for field in fields)
    return ValidationFailed(f"{what}: {summary}", fields=fields)
