"""Which files of a repository make the model, and fetching them: what Hugging Face and ModelScope have in common."""

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
from services.model.sources.download import RemoteFile, download
from services.model.sources.hub_http import Policy
from services.model.sources.port import Progress, Pulled, paced, within

QUANTIZATION = re.compile(r"(?i)(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|FP16|F32))(?=$|[-._/])")
PART = re.compile(r"-\d{5}-of-\d{5}$")
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")  # a good answer for its size, then the fastest on a CPU, then nearly lossless
BESIDE = (".json", ".jinja", ".model", ".txt")  # configuration and tokenizers
MAX_BESIDE = 256 << 20  # bytes of one such file
VOCABULARY_TEXTS = ("vocab.txt", "merges.txt")  # other texts are read by people


@dataclass(frozen=True)
class RepoFile:
    """A file as the hub lists it; `size` in bytes, `sha256` in hexadecimal where the hub says."""

    path: str
    size: int | None
    sha256: str | None


def has_gguf(files: Sequence[RepoFile]) -> bool:
    """Tell whether the repository offers GGUF weights; then a tag names a quantisation, no revision."""
    return any(_is_gguf(file) for file in files)


def choose(files: Sequence[RepoFile], tag: str | None, repo: str) -> list[RepoFile]:
    """Return the files to fetch: one GGUF quantisation with all its parts, or all safetensors with their config.

    Raises NotFound (TAG_NOT_FOUND), naming what there is, and ValidationFailed (NOT_A_MODEL).
    """
    if has_gguf(files):
        return _choose_gguf([file for file in files if _is_gguf(file)], tag)
    weights = [file for file in files if file.path.endswith(".safetensors")]
    if not weights:
        weights = [file for file in files if file.path.endswith(".onnx")][:1]
    if not weights:
        raise ValidationFailed(f"{repo} holds no weights that we can read", reason="NOT_A_MODEL", path=repo)
    return weights + [file for file in files if _goes_along(file)]


def _is_gguf(file: RepoFile) -> bool:
    return file.path.endswith(".gguf") and "mmproj" not in file.path.lower()


def _goes_along(file: RepoFile) -> bool:
    name = file.path.rsplit("/", 1)[-1]
    wanted = name.endswith(BESIDE) and (not name.endswith(".txt") or name in VOCABULARY_TEXTS)
    return wanted and (file.size or 0) <= MAX_BESIDE


def _choose_gguf(files: Sequence[RepoFile], tag: str | None) -> list[RepoFile]:
    groups: dict[str, list[RepoFile]] = defaultdict(list)
    for file in files:
        groups[PART.sub("", file.path.removesuffix(".gguf"))].append(file)
    if tag is not None:
        wanted = [stem for stem in groups if tag.upper() in (_quantization(stem), stem.rsplit("/", 1)[-1].upper())]
        if not wanted:
            offered = sorted({_quantization(stem) or stem for stem in groups})
            raise NotFound(
                f"there is no {tag}; there are {', '.join(offered)}", reason="TAG_NOT_FOUND", offered=offered
            )
        return groups[min(wanted)]
    for quantization in PREFERRED:
        for stem in sorted(groups):
            if _quantization(stem) == quantization:
                return groups[stem]
    return min(groups.values(), key=lambda group: sum(file.size or 0 for file in group))


def _quantization(stem: str) -> str | None:
    """Return the last part of a file's name that reads as a quantisation, in capitals."""
    found = QUANTIZATION.findall(stem)
    return found[-1].upper() if found else None


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
    """Fetch the files one after another into `into/files`; a single file is the model, else the folder is.

    Raises what `Source.pull` declares.
    """
    folder = into / "files"
    total = sum(file.size for file in files if file.size is not None) or None
    done = 0
    steady = paced(progress)

    async def shifted(here: int, _total: int | None) -> None:
        await steady(done + here, total)

    wanted = [RemoteFile(url_of(file), within(folder, file.path), file.sha256, file.size, headers) for file in files]
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    await in_thread(check_room, folder, max(0, (total or 0) - there))
    for each in wanted:
        await download(http, each, shifted, policy)
        done += each.path.stat().st_size
    path = wanted[0].path if len(wanted) == 1 else folder
    whole = await in_thread(checksum, path)
    digest = f"sha256:{files[0].sha256}" if len(files) == 1 and files[0].sha256 else None
    return Pulled(path, whole, done, digest, license_name)
