"""Pulls models from ModelScope, or from a server with the same HTTP API (`MODELSCOPE_ENDPOINT`, or a pull's `mirror`).

The URLs for the list of files and for one file are from ModelScope's own client (github.com/modelscope/modelscope,
modelscope/hub/api.py and file_download.py). The URL for a search is from ModelScope's web page.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlencode

import httpx2
import msgspec

from aima_core.errors import AimaError
from services.model.sources.hub_http import PATIENT, Policy, client, get_json
from services.model.sources.port import (
    Progress,
    Pulled,
    SourceResult,
    check_address,
    check_mirror,
    check_repo,
    check_tag,
)
from services.model.sources.repo_files import RepoFile, Repository

HUB = "https://www.modelscope.cn"
REVISION = "master"  # the hub's default branch


class _File(msgspec.Struct, rename="pascal"):
    path: str
    type: str = "blob"
    size: int | None = None
    sha256: str | None = None


class _Files(msgspec.Struct, rename="pascal"):
    files: list[_File]


class _Listing(msgspec.Struct, rename="pascal"):
    data: _Files


class _Model(msgspec.Struct, rename="pascal"):
    path: str = ""
    """The owner of the model; the hub calls this field the path."""
    name: str = ""
    license: str | None = None
    downloads: int | None = None


class _About(msgspec.Struct, rename="pascal"):
    data: _Model


class _Models(msgspec.Struct, rename="pascal"):
    models: list[_Model] | None = None


class _Hits(msgspec.Struct, rename="pascal"):
    model: _Models


class _Search(msgspec.Struct, rename="pascal"):
    data: _Hits


@dataclass(frozen=True)
class ModelScope:
    """The hub at the URL `endpoint`; default: the URL in `MODELSCOPE_ENDPOINT`, or https://www.modelscope.cn."""

    endpoint: str | None = None
    policy: Policy = PATIENT
    formats: ClassVar = ()
    parts: ClassVar = (2,)
    searches: ClassVar = True

    def _home(self) -> str:
        return check_address(self.endpoint or os.environ.get("MODELSCOPE_ENDPOINT") or HUB, "MODELSCOPE_ENDPOINT")

    async def pull(
        self,
        repo: str,
        tag: str | None,
        into: Path,
        progress: Progress,
        mirror: str | None,
        format_: str | None = None,
    ) -> Pulled:
        """Download a repository `owner/name`. See `Source.pull`. `tag`: as for Hugging Face."""
        check_repo(repo, self.parts)
        check_tag(tag)
        base = f"{check_mirror(mirror) or self._home()}/api/v1/models/{repo}"
        async with client(self.policy) as http:
            files = await _repository(http, base, REVISION, repo, self.policy)
            if tag is not None and not await files.chooses(tag, format_):
                files, tag = await _repository(http, base, tag, repo, self.policy), None
            license_name = await _license(http, base, repo)
            return await files.fetch(tag, format_, into / "files", progress, license_name)

    async def search(self, query: str, limit: int) -> list[SourceResult]:
        """Return the models whose name contains the query. Raises the errors of `pull`."""
        body = {"PageSize": limit, "PageNumber": 1, "Name": query, "SortBy": "Default"}
        async with client(self.policy) as http:
            request = http.build_request("PUT", f"{self._home()}/api/v1/dolphin/models", json=body)
            answer: _Search = await get_json(http, request, "search", _Search)
        models = answer.data.model.models or []
        return [
            SourceResult("modelscope", f"{model.path}/{model.name}", model.name, downloads=model.downloads)
            for model in models[:limit]
        ]


async def _repository(http: httpx2.AsyncClient, base: str, revision: str, repo: str, policy: Policy) -> Repository:
    query = urlencode({"Revision": revision, "Recursive": "true"})
    request = http.build_request("GET", f"{base}/repo/files?{query}")
    answer: _Listing = await get_json(http, request, repo, _Listing)
    files = [RepoFile(file.path, file.size, file.sha256 or None) for file in answer.data.files if file.type != "tree"]

    def url_of(file: RepoFile) -> str:
        return f"{base}/repo?{urlencode({'Revision': revision, 'FilePath': file.path})}"

    return Repository(http, repo, files, url_of, policy)


async def _license(http: httpx2.AsyncClient, base: str, repo: str) -> str | None:
    """Return the licence; None if the hub does not state it, because a pull must not fail without a licence."""
    try:
        about: _About = await get_json(http, http.build_request("GET", base), repo, _About)
    except AimaError:
        return None
    return about.data.license or None
