"""Chooses the files of a repository that form the model, and downloads them. For Hugging Face and ModelScope."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2

from aima_core.errors import NotFound, ValidationFailed
from services.model.files.checksum import checksum
from services.model.files.disk import check_room
from services.model.files.threads import in_thread
from services.model.headers.format_table import FORMATS
from services.model.sources.download import RemoteFile, download
from services.model.sources.hub_http import Policy
from services.model.sources.port import Progress, Pulled, paced, within
from services.model.units import is_opaque

QUANTIZATION = re.compile(r"(?i)(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|FP16|F32))(?=$|[-._/])")
PART = re.compile(r"-\d{5}-of-\d{5}$")
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")  # best quality for its size; fastest on a CPU; nearly lossless
BESIDE = (".json", ".jinja", ".model", ".txt")  # configuration and tokenizers
MAX_BESIDE = 256 << 20  # bytes of one configuration or tokenizer file
VOCABULARY_TEXTS = ("vocab.txt", "merges.txt")  # text files to download; other text files are documentation


@dataclass(frozen=True)
class RepoFile:
    """A file in a hub's list. `size` (bytes) and `sha256` (hexadecimal) are None if the hub does not state them."""

    path: str
    size: int | None
    sha256: str | None


def chooses_gguf(files: Sequence[RepoFile], format_: str | None) -> bool:
    """Return whether `choose` returns GGUF weights. If so, a tag is a quantisation instead of a revision."""
    return format_ in (None, "gguf") and any(_is_gguf(file) for file in files)


def choose(files: Sequence[RepoFile], tag: str | None, repo: str, format_: str | None = None) -> list[RepoFile]:
    """Return the files of a repository to download.

    If the repository has GGUF files: one quantisation with all its parts. Otherwise: the weights in the first known
    format that the repository has, with configuration and tokenizer. If `format_` is a known format: only weights in
    this format. If `format_` is an opaque format: all files except hidden ones.

    Raises NotFound (TAG_NOT_FOUND), which lists the known tags, and ValidationFailed (NOT_A_MODEL).
    """
    if format_ and is_opaque(format_):
        chosen = [file for file in files if not any(part.startswith(".") for part in file.path.split("/"))]
        if not chosen:
            raise ValidationFailed(f"{repo} has no files", reason="NOT_A_MODEL", path=repo)
        return chosen
    if chooses_gguf(files, format_):
        return _choose_gguf([file for file in files if _is_gguf(file)], tag, repo)
    sought = [FORMATS[format_]] if format_ else [known for known in FORMATS.values() if known.own_suffix]
    for known in sought:
        weights = [file for file in files if file.path.endswith(known.suffix) and not _is_projector(file)]
        if weights:
            return (weights if known.folders else weights[:1]) + [file for file in files if _accompanies(file)]
    what = " or ".join(known.title for known in sought)
    raise ValidationFailed(
        f"{repo} has no {what} files; "
        "if an engine reads its files, set format to a format that the engine's manifest lists",
        reason="NOT_A_MODEL",
        path=repo,
    )


def _is_gguf(file: RepoFile) -> bool:
    return file.path.endswith(".gguf") and not _is_projector(file)


def _is_projector(file: RepoFile) -> bool:
    return "mmproj" in file.path.lower()


def _accompanies(file: RepoFile) -> bool:
    name = file.path.rsplit("/", 1)[-1]
    needed = name.endswith(BESIDE) and (not name.endswith(".txt") or name in VOCABULARY_TEXTS)
    return needed and (file.size or 0) <= MAX_BESIDE


def _choose_gguf(files: Sequence[RepoFile], tag: str | None, repo: str) -> list[RepoFile]:
    groups: dict[str, list[RepoFile]] = defaultdict(list)
    for file in files:
        groups[PART.sub("", file.path.removesuffix(".gguf"))].append(file)
    if tag is not None:
        matches = [stem for stem in groups if tag.upper() in (_quantization(stem), stem.rsplit("/", 1)[-1].upper())]
        if not matches:
            offered = sorted({_quantization(stem) or stem for stem in groups})
            raise NotFound(f"{repo} has no {tag}; known: {', '.join(offered)}", reason="TAG_NOT_FOUND", offered=offered)
        return groups[min(matches)]
    for quantization in PREFERRED:
        for stem in sorted(groups):
            if _quantization(stem) == quantization:
                return groups[stem]
    return min(groups.values(), key=lambda group: sum(file.size or 0 for file in group))


def _quantization(stem: str) -> str | None:
    """Return the last quantisation in a file's name, in capitals; None if the name has none."""
    matches = QUANTIZATION.findall(stem)
    return matches[-1].upper() if matches else None


async def fetch(
    http: httpx2.AsyncClient,
    files: Sequence[RepoFile],
    url_of: Callable[[RepoFile], str],
    into: Path,
    progress: Progress,
    policy: Policy,
    headers: Mapping[str, str],
    license_name: str | None,
) -> Pulled:
    """Download the files, one after another, into `into/files`. Raises the errors of `Source.pull`.

    The path of the result is the file, or the folder if there are several files.
    """
    folder = into / "files"
    total = sum(file.size for file in files if file.size is not None) or None
    done = 0
    report = paced(progress)

    async def add_to_total(of_file: int, _total: int | None) -> None:
        await report(done + of_file, total)

    targets = [RemoteFile(url_of(file), within(folder, file.path), file.sha256, file.size, headers) for file in files]
    present = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    await in_thread(check_room, folder, max(0, (total or 0) - present))
    for target in targets:
        await download(http, target, add_to_total, policy)
        done += target.path.stat().st_size
    path = targets[0].path if len(targets) == 1 else folder
    total_checksum = await in_thread(checksum, path)
    digest = f"sha256:{files[0].sha256}" if len(files) == 1 and files[0].sha256 else None
    return Pulled(path, total_checksum, done, digest, license_name)
