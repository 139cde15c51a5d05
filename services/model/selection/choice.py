"""Chooses the model in a list of files. The readers that check a finished download also check the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aima_core.errors import NotFound, ValidationFailed
from services.model.headers.candidates import Candidate, candidates, searched
from services.model.headers.format_table import KnownFormat
from services.model.headers.formats import located, read_candidate
from services.model.headers.gguf import read_header
from services.model.headers.gguf_parts import part_name
from services.model.headers.model_file import Auxiliary, SplitPart
from services.model.selection.companions import companions
from services.model.selection.listed_path import FileList, ListedPath
from services.model.units import is_opaque

MAX_TRIED = 16  # candidates of one format whose headers are read
MAX_PARTS_READ = 200  # files whose headers are read to find the other parts of a split model
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")  # best quality for its size; fastest on a CPU; nearly lossless

Order = Callable[[Candidate[ListedPath]], tuple[object, ...]]


class HeaderTooFar(ValidationFailed):
    """The header cannot be read without much of the file. Its reader checks it after the download."""


@dataclass(frozen=True)
class Choice:
    """The files of a model. `files`: the path on the disk of each file, by its path in the list.

    `path`: what an engine loads, on the disk: a file, or a folder, which is empty for the folder of all files.
    """

    files: dict[str, str]
    path: str


def hub_order(candidate: Candidate[ListedPath]) -> tuple[object, ...]:
    """Sort the preferred quantisations first, then the smallest model."""
    name = candidate.quantization
    rank = PREFERRED.index(name) if name in PREFERRED else len(PREFERRED)
    size = 0 if rank < len(PREFERRED) else candidate.size
    return (candidate.auxiliary, rank, size, len(candidate.files), len(candidate.home), candidate.stem)


def package_order(candidate: Candidate[ListedPath]) -> tuple[object, ...]:
    """Sort the largest model first: the smaller files of a package belong to it."""
    return (candidate.auxiliary, -candidate.size, candidate.stem)


def is_choice(listing: FileList, tag: str, format_: str | None = None) -> bool:
    """Return whether a tag chooses among the models in the list; it is otherwise a revision of the repository.

    In a list with GGUF models, every tag is a quantisation. Blocking: reads indexes.
    """
    if format_ and is_opaque(format_):
        return False
    for known in searched(format_):
        try:
            models = [model for model in candidates(listing.root, known) if not model.auxiliary]
        except ValidationFailed:  # the list has no model in this format; `choose` tells why
            continue
        if any(known.name == "gguf" or model.goes_by(tag) for model in models):
            return True
    return False


def choose(
    listing: FileList,
    tag: str | None = None,
    format_: str | None = None,
    order: Order = hub_order,
    only: bool = False,
) -> Choice:
    """Return the files of the model. Blocking: reads headers.

    `tag`: a quantisation, or the name of a file or folder. An opaque format takes all files except hidden ones. `only`:
    whether the list must not have a second model. Raises
    NotFound (TAG_NOT_FOUND), which lists the known tags, and ValidationFailed (NOT_A_MODEL, TRUNCATED, AMBIGUOUS,
    UNSUPPORTED_FORMAT), which has the cause.
    """
    title = listing.title
    if format_ and is_opaque(format_):
        names = [name for name in listing.files if not any(part.startswith(".") for part in name.split("/"))]
        if not names:
            raise ValidationFailed(f"{title} has no files", reason="NOT_A_MODEL", path=title)
        return Choice({name: name for name in names}, names[0] if len(names) == 1 else "")
    refused: list[ValidationFailed] = []
    formats = searched(format_)
    for together in [formats] if order is package_order else [[known] for known in formats]:
        models: list[Candidate[ListedPath]] = []
        for known in together:
            try:
                models += candidates(listing.root, known)
            except ValidationFailed as refusal:
                refused.append(refusal)
        if tag is not None and models:
            models = _tagged(models, tag, title)
        choices: list[Choice] = []
        for candidate in sorted(models, key=order)[:MAX_TRIED]:
            if choices and candidate.path.key in choices[0].files:
                continue  # a part of the chosen model
            try:
                choices.append(_checked(listing, candidate, models))
            except ValidationFailed as refusal:
                refused.append(refusal)
            if len(choices) == 1 + only:
                break
        if len(choices) > 1:
            why = f"{title} has several models, and nothing tells which of them is meant"
            raise ValidationFailed(why, reason="AMBIGUOUS", path=title)
        if choices:
            return choices[0]
    raise _no_model(title, formats, refused)


def _tagged(models: Sequence[Candidate[ListedPath]], tag: str, title: str) -> list[Candidate[ListedPath]]:
    tagged = [model for model in models if model.goes_by(tag)]
    if not tagged:
        offered = sorted({model.quantization or model.stem for model in models if not model.auxiliary})
        raise NotFound(f"{title} has no {tag}; known: {', '.join(offered)}", reason="TAG_NOT_FOUND", offered=offered)
    return tagged


def _no_model(title: str, formats: Sequence[KnownFormat], refused: Sequence[ValidationFailed]) -> ValidationFailed:
    """Return the error for a list without a model: the refusal of the best candidate that claims to be a model."""
    for refusal in refused:
        if not isinstance(refusal, Auxiliary):
            return refusal
    *first, last = (known.title for known in formats)
    what = f"{', '.join(first)} or {last}" if first else last
    why = f" ({'; '.join(refusal.message for refusal in refused[:5])})" if refused else ""
    return ValidationFailed(
        f"{title} has no {what} files{why}; if an engine reads its files, set format to a format that the engine's"
        " manifest lists",
        reason="NOT_A_MODEL",
        path=title,
    )


def _checked(listing: FileList, candidate: Candidate[ListedPath], models: Sequence[Candidate[ListedPath]]) -> Choice:
    """Return the files of a candidate, if the reader accepts them as they will lie on the disk."""
    names = {file.key: file.key for file in (*candidate.files, *companions(listing.root, candidate))}
    try:
        read_candidate(candidate)
    except HeaderTooFar:
        return Choice(names, _path_of(candidate, names))
    except SplitPart as part:
        names = _all_parts(candidate, part, models)
        kept = FileList(listing.title, {name: listing.files[key] for key, name in names.items()})
        path, _ = located(kept.root)
        return Choice(names, path.key)
    return Choice(names, _path_of(candidate, names))


def _path_of(candidate: Candidate[ListedPath], names: dict[str, str]) -> str:
    """Return what an engine loads: the folder of several safetensors files, else the file."""
    if candidate.known.folders and len(names) == 1:
        return next(iter(names.values()))
    return candidate.path.key


def _all_parts(
    candidate: Candidate[ListedPath], part: SplitPart, models: Sequence[Candidate[ListedPath]]
) -> dict[str, str]:
    """Return all parts of a split model by their headers, with the names that engines expect. Raises SplitPart."""
    found: dict[int, list[ListedPath]] = {}
    tensors: set[int | None] = set()
    single = [model.path for model in models if len(model.files) == 1 and model.home == candidate.home]
    for file in single[:MAX_PARTS_READ]:
        try:
            header = read_header(file)
        except ValidationFailed:
            continue
        if header.parts == part.count:
            found.setdefault(header.part, []).append(file)
            tensors.add(header.number("split.tensors.count"))
    if sorted(found) != list(range(1, part.count + 1)) or len(tensors) > 1 or any(len(of) > 1 for of in found.values()):
        raise part
    stem = "/".join((*candidate.home, found[1][0].stem))
    return {files[0].key: part_name(stem, number, part.count) for number, files in sorted(found.items())}
