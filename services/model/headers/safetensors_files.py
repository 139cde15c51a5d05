"""Which safetensors files in a folder form the model.

Hubs put more into a folder than the model: the same weights in another layout (consolidated.safetensors, original/) or
precision (model.fp16.safetensors), and adapters. An index names the files of a model in several files. Without an
index, the usual names count, then the numbers in the names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from aima_core.errors import ValidationFailed
from services.model.headers.model_file import not_a_model, one_part, truncated
from services.model.headers.safetensors_header import read_header
from services.model.paths.file_names import is_auxiliary
from services.model.paths.folder_walk import children
from services.model.paths.model_path import ModelPath, P

SUFFIX, INDEX, PIPELINE = ".safetensors", ".safetensors.index.json", "model_index.json"
MAIN = ("model", "diffusion_pytorch_model")  # stems of the weights that libraries load from a folder
SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")
MAX_INDEX = 64 << 20  # bytes
MAX_SHARDS = 2000  # the largest published models have some hundreds
MAX_CHECKED = 64  # files whose tensors are compared, if no name says which files are the model


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def weights(folder: P) -> list[P]:
    """Return the weights of the model in a folder; empty if the folder has no safetensors.

    A pipeline of diffusers has one folder for each network. Raises ValidationFailed (TRUNCATED, NOT_A_MODEL,
    AMBIGUOUS).
    """
    pipeline = folder / PIPELINE
    if pipeline.is_file():
        return [file for network in _networks(folder, pipeline) for file in _network(network)]
    return _network(folder)


def index_of(file: P) -> P | None:
    """Return the index that names the file; None if there is no such index."""
    shard = SHARD.match(file.name)
    index = file.with_name(f"{shard['stem'] if shard else file.stem}{INDEX}")
    return index if index.is_file() else None


def check_alone(file: ModelPath) -> None:
    """Raise SplitPart if the file is a part of a split model, by its name."""
    shard = SHARD.match(file.name)
    if shard and int(shard["count"]) > 1:
        raise one_part(file, int(shard["number"]), int(shard["count"]), "give the path of the folder with all parts")


def _networks(folder: P, pipeline: P) -> Iterable[P]:
    """Return the folders of the networks that a pipeline names; all folders if its file is invalid."""
    with pipeline.open("rb") as file:
        text = file.read(1 << 20)
    try:
        stated = msgspec.json.decode(text, type=dict[str, object])
    except (msgspec.MsgspecError, RecursionError):
        stated = {}
    names = [name for name, value in stated.items() if isinstance(value, list) and None not in value]
    return [child for child in children(folder) if child.is_dir() and (not names or child.name in names)]


def _network(folder: P) -> list[P]:
    files = {file.name: file for file in children(folder) if file.name.endswith((SUFFIX, INDEX)) and file.is_file()}
    stems = [*MAIN, *sorted({name.removesuffix(INDEX) for name in files if name.endswith(INDEX)} - {*MAIN})]
    usual = [stem for stem in stems if not is_auxiliary(stem)]
    for stem in usual:
        index, single = files.get(f"{stem}{INDEX}"), files.get(f"{stem}{SUFFIX}")
        if index is not None:
            named = _indexed(folder, index)
            missing = next((name for name in named if name not in files), None)
            if missing is None:
                return [files[name] for name in named]
            if single is None:
                raise truncated(folder, f"the file {missing} is missing, which {index.name} names")
        if single is not None:
            return [single]
    return _unindexed(folder, [file for name, file in files.items() if name.endswith(SUFFIX)])


def _indexed(folder: ModelPath, index: ModelPath) -> list[str]:
    """Return the names of the files in the index of a sharded model, which must be in the same folder."""
    if index.stat().st_size > MAX_INDEX:
        raise not_a_model(folder, f"{index.name} is too large")
    with index.open("rb") as file:
        text = file.read(MAX_INDEX)
    try:
        names = sorted(set(msgspec.json.decode(text, type=_Index).weight_map.values()))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise not_a_model(folder, f"{index.name} is not a valid index") from None
    if any("/" in name or "\\" in name or not name.endswith(SUFFIX) for name in names):
        raise not_a_model(folder, f"{index.name} names files outside the folder")
    if not 1 <= len(names) <= MAX_SHARDS:
        raise not_a_model(folder, f"{index.name} names {len(names)} files; 1 to {MAX_SHARDS} are allowed")
    return names


def _unindexed(folder: P, files: list[P]) -> list[P]:
    """Return the files of the model in a folder without an index and without a file of a usual name."""
    models: dict[tuple[str, int], list[P]] = defaultdict(list)
    for file in files:
        shard = SHARD.match(file.name)
        models[(shard["stem"], int(shard["count"])) if shard else (file.stem, 1)].append(file)
    plain = {key: group for key, group in models.items() if not is_auxiliary(key[0])} or models
    for (stem, count), group in plain.items():
        if len(group) != count:
            raise truncated(folder, f"it has {len(group)} of the {count} files of {stem}")
    if len(plain) <= 1:
        return next(iter(plain.values()), [])
    together = [file for group in plain.values() for file in group]
    if len(together) > MAX_CHECKED or _overlap(together):
        names = ", ".join(file.name for file in together[:10])
        raise ValidationFailed(
            f"{folder} has several models; give the path of one of them: {names}", reason="AMBIGUOUS", path=str(folder)
        )
    return together


def _overlap(files: Iterable[ModelPath]) -> bool:
    """Return whether two of the files have a tensor of the same name: they are then two models, not one in pieces."""
    seen: set[str] = set()
    for file in files:
        names = read_header(file).tensors.keys()
        if not seen.isdisjoint(names):
            return True
        seen |= names
    return False
