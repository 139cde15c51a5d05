"""Inspects local model files: reads their facts for a registration. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from aima_core.errors import InvalidRequest, NotFound
from services.model import internal as i
from services.model import units as u
from services.model.files.checksum import measured
from services.model.files.declared import check_declared, refused
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
        sums = measured(path)
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
        checksum=sums.checksum,
        digests=sums.digests,
        facts=facts_of(file),
    )
