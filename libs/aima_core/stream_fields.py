"""Defines the fields that name a stream: references in units, and versions in views.

    ServiceId = Annotated[str, Ref("service"), Field(description="Id or name of a service.")]

    class ServiceView(View, stream="id"):
        id: str
        stream_version: StreamVersion = None

A caller may send a name in a reference. The core replaces the name by the id before anything else reads the request
(decision 0021). A caller may pass a view's version as the expected version of a command. The command fails if the
stream has another version by then. So the version of a view must never be newer than the view's content. If the version
is older, the command only fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Ref:
    """Marks a field that refers to a stream of a domain. The field is a text, an optional text or a list of texts."""

    domain: str


def reference_fields(fields: Iterable[tuple[str, FieldInfo]], domain: str) -> tuple[str, ...]:
    """Return the names of the fields that refer to streams of the domain."""
    return tuple(name for name, field in fields if Ref(domain) in (*field.metadata, *_inner(field.annotation)))


def resolved(value: Any, resolve: Callable[[str], str]) -> Any:
    """Return the value of a reference field with ids in place of names."""
    if isinstance(value, str):
        return resolve(value)
    return type(value)(resolve(item) for item in value) if isinstance(value, list | tuple) else value


def _inner(annotation: Any) -> Iterable[Any]:
    """Yield all types and annotations inside a type, such as the type of a list's items or the members of a union."""
    for argument in get_args(annotation):
        yield argument
        yield from _inner(argument)


StreamVersion = Annotated[
    int | None,
    Field(
        description="Version of this object. With this version as --expect or Aima-Expected-Version, a command fails if"
        " the object has changed."
    ),
]
"""The type of the field `stream_version`. The core sets the field, unless an answer shows an earlier state."""


class View(BaseModel):
    """The base class of answers.

    A view of a stream has the class keyword `stream`: the name of the field that holds the stream's id. It also has the
    field `stream_version: StreamVersion = None`.
    """

    model_config = ConfigDict(frozen=True)
    stream_field: ClassVar[str | None] = None
    versioned_fields: ClassVar[tuple[str, ...]] = ()
    """The fields that contain a view with a version, at any depth."""

    def __init_subclass__(cls, **_: Any) -> None:  # drops the class keyword: pydantic's hook below reads it
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, *, stream: str | None = None) -> None:  # type: ignore[override]  # its keyword
        super().__pydantic_init_subclass__()
        cls.stream_field = stream or cls.stream_field
        has_version = "stream_version" in cls.model_fields
        if has_version != bool(cls.stream_field) or (stream and stream not in cls.model_fields):
            raise TypeError(
                f"{cls.__name__} needs the class keyword `stream` and the field `stream_version`, or neither"
            )
        cls.versioned_fields = tuple(name for name, field in cls.model_fields.items() if _versioned(field.annotation))

    @classmethod
    def shows_streams(cls) -> bool:
        """Whether the view, or a view in it, shows a stream."""
        return bool(cls.stream_field or cls.versioned_fields)


V = TypeVar("V", bound=View)


def stream_of(view: View, domain: str) -> str | None:
    """Return the stream that a view of the domain shows, or None if the view does not show exactly one stream."""
    ident = getattr(view, view.stream_field) if view.stream_field else None
    return f"{domain}/{ident}" if ident else None


def version_of(view: View) -> int | None:
    """Return the view's `stream_version`, or None if the view has no version or the core has not set it yet."""
    return getattr(view, "stream_version", None)


def with_versions(view: V, domain: str, current: Callable[[str], int]) -> V:
    """Return the view with its `stream_version` set, and the views inside it, too. `current` returns a version."""
    changes: dict[str, Any] = {}
    if view.stream_field and version_of(view) is None and (stream := stream_of(view, domain)):
        changes["stream_version"] = current(stream)
    for field in view.versioned_fields:
        changes[field] = _with_versions(getattr(view, field), domain, current)
    return view.model_copy(update=changes) if changes else view


def _with_versions(value: Any, domain: str, current: Callable[[str], int]) -> Any:
    if isinstance(value, View):
        return with_versions(value, domain, current)
    if isinstance(value, list | tuple):
        return type(value)(_with_versions(item, domain, current) for item in value)
    if isinstance(value, Mapping):
        return {key: _with_versions(item, domain, current) for key, item in value.items()}
    return value


def _versioned(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, View):
        return annotation.shows_streams()
    return any(_versioned(argument) for argument in get_args(annotation))
