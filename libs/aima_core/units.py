"""Atomic units: Command and Query (pydantic, they come from outside), Event (msgspec, we wrote it), Resource.

A unit says everything about itself once: its name and limits in the class line, its fields as the schema,
its docstring as the description. Discovery, documents, doors and command line are made from that.
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

Risk = Literal["low", "medium", "high"]
LARGEST = 2**63 - 1  # what SQLite holds as an integer: the bound of whatever is stored or compared there
_NOT_IN_A_TOKEN = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_TOKEN = 200  # characters; a server cuts the connection over a subject of more than 4096
_MOST_NAMED = 20  # faults of an input that a refusal names
_LONGEST_NAME = 100  # characters of a field's name in a refusal: the caller chose it


class View(BaseModel):
    """What a unit answers."""

    model_config = ConfigDict(frozen=True)


class Success(View):
    """The answer of a command that has nothing more to say."""

    success: bool = Field(True, description="Always true; a refusal is an error reply.")


_LARGEST_OPTIONS = 64 * 1024  # characters of JSON


def _keepable(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse options that an event could not hold: numbers that JSON has not, or more than anybody sets by hand."""
    try:
        size = len(json.dumps(options, allow_nan=False))
    except ValueError:
        raise ValueError("no number in it may be infinite") from None
    if size > _LARGEST_OPTIONS:
        raise ValueError(f"at most {_LARGEST_OPTIONS} characters of JSON")
    return options


Options = Annotated[dict[str, Any], AfterValidator(_keepable)]
"""Free-form options of something that only its owner knows to check."""

Out = TypeVar("Out", bound=View)


class UnitSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the class line of a unit says beside its fields."""

    name: str
    kind: Literal["command", "query"]
    risk: Risk
    stream: str | None
    timeout: float
    batches: bool
    errors: tuple[type[AimaError], ...]
    events: tuple[type[Event], ...]
    examples: tuple[Mapping[str, Any], ...]

    @property
    def domain(self) -> str:
        """The part of the name before the dot."""
        return self.name.partition(".")[0]

    @property
    def action(self) -> str:
        """The part of the name behind the dot."""
        return self.name.partition(".")[2]


class Unit(BaseModel, Generic[Out]):
    """The input of a unit; `Out` is its output. Frozen, strict, and closed to unknown fields.

    Class keywords: `unit` its name; `stream` the field that names the stream it is about; `risk`;
    `timeout` seconds until a call without a deadline of its own is given up; `batches`: many may be asked in one
    message, as they answer at once; `errors` it may refuse with;
    `events` it may record; `examples` of its input, which the tests validate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    spec: ClassVar[UnitSpec]
    output: ClassVar[type[View]]
    kind: ClassVar[Literal["command", "query"]]

    def __init_subclass__(cls, **_: Any) -> None:  # pydantic's hook below takes the class keywords
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(  # type: ignore[override]  # names what the class line may say
        cls,
        *,
        unit: str | None = None,
        stream: str | None = None,
        risk: Risk | None = None,
        timeout: float = 30.0,
        batches: bool = False,
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
            errors=tuple(errors),
            events=tuple(events),
            examples=tuple(examples),
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
    """A unit that has effects and appends events."""

    kind = "command"


class Query(Unit[Out]):
    """A unit without effects."""

    kind = "query"


class Page(BaseModel):
    """What every list query takes beside its own fields."""

    limit: int = Field(100, ge=1, le=1000, description="At most so many items.")
    offset: int = Field(0, ge=0, le=LARGEST, description="Skip so many items.")


class EventMeta(msgspec.StructMeta):
    """Lets an event's class line name its type and the field that names its stream."""

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
        """Make the struct; `unit` and `stream` become class attributes."""
        cls = super().__new__(mcs, name, bases, namespace, **config)
        if unit:
            cls.unit = unit
            cls.stream_prefix = f"{unit.partition('.')[0]}/"
        if stream:
            cls.stream_field = stream
        return cls


class Event(msgspec.Struct, metaclass=EventMeta, frozen=True, kw_only=True):
    """A fact. Never edited; only optional fields with a default may ever be added."""

    unit: ClassVar[str]
    stream_field: ClassVar[str]
    stream_prefix: ClassVar[str]

    @property
    def stream(self) -> str:
        """The stream that the fact belongs to: domain, slash, id."""
        return f"{self.stream_prefix}{getattr(self, self.stream_field)}"


def token(ident: str) -> str:
    """Return an id as one token of a subject or a key: nothing in it may split, widen or overfill the subject."""
    return _NOT_IN_A_TOKEN.sub("_", ident)[:_LONGEST_TOKEN] or "_"


def key_of(uri: str) -> str:
    """Return the key in the resource bucket of an address: `asms://device/gpu-0/info` is `device.gpu-0.info`."""
    return ".".join(token(part) for part in uri.removeprefix("asms://").split("/"))


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """An address that can be read and watched: `asms://service/{id}`, backed by a query.

    `query` makes the query that reads it, from the `{id}` of the address (None where it has none).
    `touched` returns the ids that an event changes; an address without `{id}` returns any non-empty list.
    `ids` returns those that there are, of the ids of the domain's streams.
    """

    uri: str
    about: str
    query: Callable[[str | None], Query[Any]]
    touched: Callable[[Any], Iterable[str]]
    ids: Callable[[Sequence[str]], Iterable[str]] = tuple

    def match(self, uri: str) -> tuple[bool, str | None]:
        """Tell whether the address is one of this resource's, and the id in it."""
        if "{id}" not in self.uri:
            return uri == self.uri, None
        head, _, tail = self.uri.partition("{id}")
        fits = uri.startswith(head) and uri.endswith(tail) and len(uri) > len(head) + len(tail)
        ident = uri[len(head) : len(uri) - len(tail)] if fits else None
        return bool(ident) and "/" not in (ident or "/"), ident

    def key(self, ident: str | None) -> str:
        """Return the key in the resource bucket: `asms://device/{id}/info` of gpu-0 is `device.gpu-0.info`."""
        return key_of(self.uri.replace("{id}", token(ident or "")))


U = TypeVar("U", bound=Unit[Any])


def parse(unit: type[U], data: bytes | str) -> U:
    """Return the unit's input from JSON; raise ValidationFailed with one entry for each bad field."""
    try:
        return unit.model_validate_json(data or b"{}")
    except ValidationError as error:
        raise refusal(unit.spec.name, error) from None


def refusal(what: str, error: ValidationError) -> ValidationFailed:
    """Return pydantic's findings as our error: field, message, what came. The input itself may be a secret."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    fields = [
        {"field": ".".join(str(part) for part in fault["loc"])[:_LONGEST_NAME] or "(input)", "expected": fault["msg"]}
        for fault in faults[:_MOST_NAMED]
    ]
    named = "; ".join(f"{fault['field']}: {fault['expected']}" for fault in fields)
    return ValidationFailed(f"{what}: {named}", fields=fields)
