"""Inspects local model files: reads facts for a registration, and finds issues for a verification. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from aima_core.errors import AimaError, InvalidRequest, NotFound, ValidationFailed
from services.model import internal as i
from services.model import units as u
from services.model.files.checksum import checksum
from services.model.files.declared import check_declared, refused
from services.model.files.model_files import size_of
from services.model.files.opaque import opaque_model
from services.model.headers.formats import ModelFile, inspect, loadable
from services.model.rules import model_names

_NO_FACTS = ("format", "type", "name", "size")  # header fields that are fields of the event, not facts


def facts_of(file: ModelFile) -> u.Facts:
    """Return the facts of a header for the event model.created. Files in an opaque format have no facts."""
    if u.is_opaque(file.format):
        return {}
    fields = msgspec.to_builtins(file)
    return {key: value for key, value in fields.items() if key not in _NO_FACTS and value is not None}


def as_created(command: u.CreateModel) -> i.Register:
    """Return the registration for a CreateModel command, with the facts of the model's files.

    Raises ValidationFailed, NotFound or InvalidRequest. The error names the field `path`, `type` or `format`.
    """
    source = command.source or "local"
    if command.path is None:
        return i.Register(
            names=(command.name,),
            named=True,
            imported=False,
            type=command.type,
            format=command.format or "",
            source=source,
            path="",
            size=0,
            checksum="",
            facts={},
        )
    path, file = _inspect(command.path, command.format, command.type)
    check_declared("type", command.type, file.type)
    check_declared("format", command.format, file.format)
    return _register(path, file, (command.name,), command.type, source, named=True, imported=False)


def as_imported(command: u.ImportModel) -> i.Register:
    """Return the registration for an ImportModel command, with the facts of the model's files.

    A command with an opaque format must have a type. Raises the errors of `as_created`.
    """
    if not command.auto_detect and command.type is None:
        raise refused("type", "a type, because auto_detect is false", "TYPE_NEEDED")
    path, file = _inspect(command.path, command.format, command.type)
    check_declared("format", command.format, file.format)
    if command.auto_detect:
        check_declared("type", command.type, file.type)
    derived = (model_names.tidy(file.name), model_names.tidy(path.stem if path.is_file() else path.name))
    names = (command.name,) if command.name else tuple(name for name in derived if name) or ("model",)
    return _register(path, file, names, command.type or file.type, "import", named=bool(command.name), imported=True)


def issues_of(path: Path, format_: str, size: int, registered: str, expected: str) -> tuple[tuple[str, ...], bool]:
    """Compare files with their registration. Return the issues, and whether the files match the registration.

    For an opaque format, only size and checksum are compared. `registered`: the checksum in the registration.
    `expected`: the checksum that the caller expects, or "".
    """
    try:
        if not path.exists():
            return (f"missing: {path}",), False
        actual_size = size_of(path) if u.is_opaque(format_) else inspect(path).size
        if actual_size < size:
            return (f"truncated: {path} has {actual_size} bytes, but {size} bytes are registered",), False
        actual = checksum(path)
    except ValidationFailed as refusal:
        issue = {"TRUNCATED": "truncated", "NOT_A_MODEL": "changed"}.get(refusal.reason, "not readable")
        return (f"{issue}: {refusal.message}",), False
    except AimaError as refusal:
        return (f"not readable: {refusal.message}",), False
    except OSError as fault:
        return (f"not readable: {path}: {fault.strerror}",), False
    issues = [f"changed: the checksum is {actual}, but {registered} is registered"] if actual != registered else []
    if expected not in ("", actual):
        issues.append(f"the checksum is {actual}, but the request expects {expected}")
    return tuple(issues), actual == registered


def _inspect(text: str, format_: str | None, kind: u.ModelType | None) -> tuple[Path, ModelFile]:
    """Return the path that an engine loads, and the model's header. `text`: the absolute path of a file or folder."""
    path = Path(text)
    if "\0" in text or not path.is_absolute() or ".." in path.parts:
        raise refused("path", "an absolute path without ..", "BAD_PATH", path=text)
    try:
        if format_ and u.is_opaque(format_):
            assert kind, "the adapter adds the type of an opaque format"
            return path, opaque_model(path, format_, kind)
        inspect(path)
        path = loadable(path)
        return path, inspect(path)
    except (NotFound, InvalidRequest) as refusal:
        fields = [{"field": "path", "expected": refusal.message}]
        refusal.details = {"field": "path", "fields": fields, **refusal.details}
        raise


def _register(
    path: Path, file: ModelFile, names: Sequence[str], kind: str, source: str, *, named: bool, imported: bool
) -> i.Register:
    try:
        digest = checksum(path)
    except OSError as fault:
        raise InvalidRequest(
            f"{path} cannot be read: {fault.strerror}", reason="NOT_READABLE", field="path", path=str(path)
        ) from fault
    return i.Register(
        names=tuple(dict.fromkeys(names)),
        named=named,
        imported=imported,
        type=kind,
        format=file.format,
        source=source,
        path=str(path),
        size=file.size,
        checksum=digest,
        facts=facts_of(file),
    )
