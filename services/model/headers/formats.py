"""Detects the format and type of a file or folder of weights from its header.

It reads headers only, checks every number in them, and must not run code from a file.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

import msgspec

from aima_core.errors import InvalidRequest, NotFound, ValidationFailed
from services.model.headers import e5s, gguf, gguf_model, onnx, safetensors
from services.model.headers.model_file import Format, ModelFile, ModelType, check_end, not_a_model, truncated

__all__ = ["Format", "ModelFile", "ModelType", "inspect", "loadable", "parts"]

WEIGHTS = (".gguf", ".safetensors", ".onnx", ".bin")
PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
MAX_PARTS = 1000  # the largest published models come in under two hundred
INDEX = "model.safetensors.index.json"
MAX_INDEX = 64 << 20  # bytes


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def inspect(path: Path) -> ModelFile:
    """Return the facts of the weights at `path`, a file or a folder. Blocking: reads from the disk.

    Raises NotFound (FILE_NOT_FOUND), InvalidRequest (NOT_READABLE) and ValidationFailed (NOT_A_MODEL, TRUNCATED,
    UNSUPPORTED_FORMAT, AMBIGUOUS), each with `path` in its details.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _folder(path)
        if stat.S_ISREG(mode):
            return _file(path)
    except FileNotFoundError as missing:
        raise NotFound(f"there is no file {path}", reason="FILE_NOT_FOUND", path=str(path)) from missing
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the name
        why = fault.strerror if isinstance(fault, OSError) else str(fault)
        raise InvalidRequest(f"{path} cannot be read: {why}", reason="NOT_READABLE", path=str(path)) from fault
    raise not_a_model(path, "it is neither a file nor a folder")  # reading a pipe would block forever


def loadable(path: Path) -> Path:
    """Return the path that an engine loads of a model that `inspect` accepts.

    A folder with one GGUF or ONNX model: that file; a model of several GGUF parts: the first part; a folder of
    safetensors: the folder.
    """
    if not path.is_dir():
        return parts(path)[0]
    files = _weights(path)
    if (path / "model_index.json").is_file() or any(file.suffix == ".safetensors" for file in files):
        return path
    return parts(_only(path, files))[0]


def _weights(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.suffix in WEIGHTS and child.is_file())


def _file(path: Path) -> ModelFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise not_a_model(path, "it is empty")
    if start.startswith(gguf.MAGIC):
        return _gguf(path, parts(path), _has_projector(path))
    if start.startswith(e5s.MAGIC):
        return e5s.read(path)
    if safetensors.looks_like(start, size):
        return _safetensors(path, path.parent, [path])
    if onnx.looks_like(start):
        return onnx.read(path)
    raise not_a_model(path, "it is not a GGUF, safetensors, ONNX or E5S file")


def _folder(folder: Path) -> ModelFile:
    if (folder / INDEX).is_file():
        return _safetensors(folder, folder, _indexed(folder))
    if (folder / "model_index.json").is_file():  # a diffusers pipeline has one folder per network
        return _safetensors(folder, folder, sorted(folder.glob("*/*.safetensors")))
    files = _weights(folder)
    tensors = [file for file in files if file.suffix == ".safetensors"]
    if tensors:
        return _safetensors(folder, folder, tensors)
    return _file(_only(folder, files))


def _only(folder: Path, files: list[Path]) -> Path:
    models = [file for file in files if not _is_projector(file) and not _is_later_part(file)]
    if len(models) > 1:
        names = ", ".join(file.name for file in models[:10])
        raise ValidationFailed(
            f"{folder} has several models; give the path of one of them: {names}", reason="AMBIGUOUS", path=str(folder)
        )
    if not models:
        raise not_a_model(folder, "the folder has no weight files (.gguf, .safetensors, .onnx, .bin)")
    return models[0]


def _gguf(path: Path, files: list[Path], projector: bool) -> ModelFile:
    headers = [gguf.read_header(file) for file in files]
    for part, header in zip(files, headers, strict=True):
        check_end(part, header.size, header.tensors_end)
    return gguf_model.describe(path, headers, projector)


def parts(path: Path) -> list[Path]:
    """Return all parts of the split model that the file belongs to, or the file itself. Raises TRUNCATED."""
    match = PART.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= count <= MAX_PARTS:
        raise not_a_model(path, f"its name states {count} parts")
    return _present(path, [path.with_name(f"{match['stem']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)])


def _present(path: Path, files: list[Path]) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise truncated(path, f"the file {missing[0]} is missing")
    return files


def _is_later_part(path: Path) -> bool:
    """Return whether the file is a later part of a split model whose first part is in the folder."""
    match = PART.match(path.name)
    if match is None or match["number"] == "00001":
        return False
    return any(path.parent.glob(f"*-00001-of-{match['count']}.gguf"))


def _is_projector(path: Path) -> bool:
    return path.suffix == ".gguf" and "mmproj" in path.name.lower()


def _has_projector(path: Path) -> bool:
    return not _is_projector(path) and any(_is_projector(file) for file in path.parent.glob("*.gguf"))


def _indexed(folder: Path) -> list[Path]:
    """Return the files in the index of a sharded model, which must be in the same folder."""
    index = folder / INDEX
    if index.stat().st_size > MAX_INDEX:
        raise not_a_model(folder, f"{INDEX} is too large")
    try:
        names = set(msgspec.json.decode(index.read_bytes(), type=_Index).weight_map.values())
    except (msgspec.MsgspecError, RecursionError):
        raise not_a_model(folder, f"{INDEX} is not a valid index") from None
    if any(Path(name).name != name for name in names):
        raise not_a_model(folder, f"{INDEX} names files outside the folder")
    return _present(folder, [folder / name for name in sorted(names)])


def _safetensors(path: Path, folder: Path, files: list[Path]) -> ModelFile:
    headers = [safetensors.read_header(file) for file in files]
    for file, header in zip(files, headers, strict=True):
        check_end(file, header.size, header.tensors_end)
    return safetensors.describe(path, folder, headers)
