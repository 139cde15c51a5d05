"""Looks at files on this machine: what they are, and whether they still are what was registered. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from aima_core.errors import AimaError, InvalidRequest, NotFound, ValidationFailed
from services.model import internal as i
from services.model import units as u
from services.model.files.checksum import checksum
from services.model.headers.formats import ModelFile, inspect, loadable
from services.model.rules import model_names

_BESIDE_THE_FACTS = ("format", "type", "name", "size")  # they have columns of their own


def facts_of(file: ModelFile) -> u.Facts:
    """Return what a header says, as it goes into the event; what it does not say is left out."""
    said = msgspec.to_builtins(file)
    return {key: value for key, value in said.items() if key not in _BESIDE_THE_FACTS and value is not None}


def as_created(command: u.CreateModel) -> i.Register:
    """Return the command with what deciding needs to know of its files.

    Raises ValidationFailed and NotFound naming the field `path`, `type` or `format`.
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
    path, file = _look(command.path)
    _agree("type", command.type, file.type)
    _agree("format", command.format, file.format)
    return _register(path, file, (command.name,), command.type, source, named=True, imported=False)


def as_imported(command: u.ImportModel) -> i.Register:
    """Return the command with what the files say. Raises as `as_created` does."""
    if not command.auto_detect and command.type is None:
        raise _refused("type", "give the type, or let it be detected", "TYPE_NEEDED")
    path, file = _look(command.path)
    if command.auto_detect:
        _agree("type", command.type, file.type)
    wishes = (model_names.tidy(file.name), model_names.tidy(path.stem if path.is_file() else path.name))
    wished = (command.name,) if command.name else tuple(name for name in wishes if name) or ("model",)
    return _register(path, file, wished, command.type or file.type, "import", named=bool(command.name), imported=True)


def issues_of(path: Path, size: int, registered: str, expected: str) -> tuple[tuple[str, ...], bool]:
    """Hold files against what is on record; return what is wrong, and whether they are what was registered."""
    try:
        if not path.exists():
            return (f"missing: {path}",), False
        file = inspect(path)
        if file.size < size:
            return (f"truncated: {path} has {file.size} bytes, {size} were registered",), False
        found = checksum(path)
    except ValidationFailed as refusal:
        what = {"TRUNCATED": "truncated", "NOT_A_MODEL": "changed"}.get(refusal.reason, "not readable")
        return (f"{what}: {refusal.message}",), False
    except AimaError as refusal:
        return (f"not readable: {refusal.message}",), False
    except OSError as fault:
        return (f"not readable: {path}: {fault.strerror}",), False
    issues = [f"changed: the checksum is {found}, registered is {registered}"] if found != registered else []
    if expected not in ("", found):
        issues.append(f"the checksum is {found}, not {expected}")
    return tuple(issues), found == registered


def _look(given: str) -> tuple[Path, ModelFile]:
    """Return what an engine loads of the files at an absolute path, and what their header says."""
    path = Path(given)
    if "\0" in given or not path.is_absolute() or ".." in path.parts:
        raise _refused("path", "an absolute path without ..", "BAD_PATH", path=given)
    try:
        inspect(path)
        path = loadable(path)
        return path, inspect(path)
    except (NotFound, InvalidRequest) as refusal:
        fields = [{"field": "path", "expected": refusal.message}]
        refusal.details = {**refusal.details, "field": "path", "fields": fields}
        raise


def _register(
    path: Path, file: ModelFile, wished: Sequence[str], kind: str, source: str, *, named: bool, imported: bool
) -> i.Register:
    try:
        digest = checksum(path)
    except OSError as fault:
        raise InvalidRequest(
            f"{path} cannot be read: {fault.strerror}", reason="NOT_READABLE", field="path", path=str(path)
        ) from fault
    return i.Register(
        names=tuple(dict.fromkeys(wished)),
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


def _agree(field: str, declared: str | None, found: str) -> None:
    if declared in (None, found) or (declared, found) == ("video_gen", "diffusion"):  # headers look the same
        return
    raise _refused(field, f"the files say {found}, not {declared}", "CONTRADICTED", found=found)


def _refused(field: str, expected: str, reason: str, **details: str) -> ValidationFailed:
    fields = [{"field": field, "expected": expected}]
    return ValidationFailed(f"{field}: {expected}", reason=reason, field=field, fields=fields, **details)
