"""Downloads the model of a repository: chooses its files by their headers, then fetches them. For all hubs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, cast

import httpx2

from aima_core.errors import ExecutionFailed
from services.model.files.checksum import measured
from services.model.files.disk import check_room, writing
from services.model.files.threads import in_thread, in_waiting_thread
from services.model.selection.choice import choose, is_choice
from services.model.selection.listed_path import FileList, ListedFile
from services.model.sources.download import download
from services.model.sources.hub_http import Policy
from services.model.sources.part import RemoteFile
from services.model.sources.port import Progress, Pulled, paced, within
from services.model.sources.remote_bytes import Ranges, RemoteBytes, waited


@dataclass(frozen=True)
class RepoFile:
    """A file in a hub's list. `size` (bytes) and `sha256` (hexadecimal) are None if the hub does not state them."""

    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True)
class Repository:
    """The files of a repository at one revision, and how to request them."""

    http: httpx2.AsyncClient
    title: str
    files: Sequence[RepoFile]
    url_of: Callable[[RepoFile], str]
    policy: Policy
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def listing(self) -> FileList:
        """The list of the files for the choice. Raises ExecutionFailed (BAD_ANSWER) for an unsafe name."""
        loop = asyncio.get_running_loop()
        for file in self.files:
            within(Path(), file.path)
        return FileList(self.title, {file.path: self._listed(file, loop) for file in self.files})

    def _listed(self, file: RepoFile, loop: asyncio.AbstractEventLoop) -> ListedFile:
        ranges = Ranges(self.http, self.url_of(file), file.path, file.size, self.headers, self.policy)

        def size() -> int:
            if file.size is not None:
                return file.size
            stated = waited(ranges.fetch(0, 1), loop)[1]
            if stated is None:
                raise ExecutionFailed(f"the hub does not state the size of {file.path}", reason="BAD_ANSWER")
            return stated

        return ListedFile(size, lambda: cast(IO[bytes], RemoteBytes(file.path, size(), ranges.fetch, loop)))

    async def chooses(self, tag: str, format_: str | None) -> bool:
        """Return whether the tag chooses among the models of the repository; it is otherwise a revision."""
        return await in_waiting_thread(is_choice, self.listing, tag, format_)

    async def fetch(
        self,
        tag: str | None,
        format_: str | None,
        folder: Path,
        progress: Progress,
        license_name: str | None,
        only: bool = False,
    ) -> Pulled:
        """Choose the files of the model, and download them into the folder. Raises the errors of `Source.pull`.

        `tag`: None if it is a revision. `only`: whether the repository must not have a second model.
        """
        choice = await in_waiting_thread(choose, self.listing, tag, format_, only=only)
        chosen = [(file, within(folder, choice.files[file.path])) for file in self.files if file.path in choice.files]
        targets = [RemoteFile(self.url_of(file), path, file.sha256, file.size, self.headers) for file, path in chosen]
        await in_thread(_remove_others, folder, [target.path for target in targets])
        total = sum(file.size for file, _ in chosen if file.size is not None) or None
        present = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
        await in_thread(check_room, folder, max(0, (total or 0) - present))
        done, report = 0, paced(progress)

        async def add_to_total(of_file: int, _total: int | None) -> None:
            await report(done + of_file, total)

        for target in targets:
            await download(self.http, target, add_to_total, self.policy)
            done += target.path.stat().st_size
        path = within(folder, choice.path) if choice.path else folder
        digest = f"sha256:{chosen[0][0].sha256}" if len(chosen) == 1 and chosen[0][0].sha256 else None
        return Pulled(path, await in_thread(measured, path), done, digest, license_name)


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    """Remove files of an interrupted pull that no longer belong to the model, because the repository has changed."""
    names = {name for path in kept for name in (path, path.with_name(f"{path.name}.part"))}
    with writing(folder):
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            if file not in names and file.with_name(file.name.removesuffix(".tag")) not in names:
                file.unlink()
