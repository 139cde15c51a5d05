"""Pulls models from the Hugging Face hub, or from a server with the same API (`HF_ENDPOINT`, or a pull's `mirror`).

`huggingface_hub` only finds the user's token. AIMA sends all requests itself, so that they have the same checks, errors
and timeouts as those to other hubs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import httpx2
import msgspec
from huggingface_hub import get_token

from aima_core.errors import AimaError, NotFound
from services.model.sources.hub_http import HUGGING_FACE, PATIENT, Policy, client, get_json, refusal
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
from services.model.units import ModelType

TYPES: dict[str, ModelType] = {
    "text-generation": "llm",
    "image-text-to-text": "vlm",
    "automatic-speech-recognition": "asr",
    "text-to-speech": "tts",
    "feature-extraction": "embedding",
    "sentence-similarity": "embedding",
    "text-ranking": "rerank",
    "text-to-image": "diffusion",
    "text-to-video": "video_gen",
    "object-detection": "detection",
}


class _Lfs(msgspec.Struct):
    sha256: str | None = None
    size: int | None = None


class _File(msgspec.Struct):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _About(msgspec.Struct):
    """A repository at one revision. `sha`: the commit."""

    sha: str | None = None
    siblings: list[_File] = []
    tags: list[str] = []


class _Hit(msgspec.Struct):
    id: str
    pipeline_tag: str | None = None
    downloads: int | None = None


@dataclass(frozen=True)
class HuggingFace:
    """The hub at the URL `endpoint`; default: the URL in `HF_ENDPOINT`, or https://huggingface.co."""

    endpoint: str | None = None
    policy: Policy = PATIENT
    formats: ClassVar = ()
    parts: ClassVar = (1, 2)
    searches: ClassVar = True

    def _home(self) -> str:
        return check_address(self.endpoint or os.environ.get("HF_ENDPOINT") or HUGGING_FACE, "HF_ENDPOINT")

    async def pull(
        self,
        repo: str,
        tag: str | None,
        into: Path,
        progress: Progress,
        mirror: str | None,
        format_: str | None = None,
    ) -> Pulled:
        """Download a repository. See `Source.pull`.

        `tag` is a quantisation ("Q4_K_M") in a repository of GGUF files, or the name of a folder with weights, else a
        revision. AIMA sends the user's token only
        to the configured hub, never to the mirror of a request.
        """
        check_repo(repo, self.parts)
        check_tag(tag)
        endpoint = check_mirror(mirror) or self._home()
        token = get_token() if mirror is None else None
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with client(self.policy) as http:
            about = await _about(http, endpoint, repo, None, headers)
            files = _repository(http, endpoint, repo, about, self.policy, headers)
            if tag is not None and not await files.chooses(tag, format_):
                about = await _about(http, endpoint, repo, tag, headers)
                files, tag = _repository(http, endpoint, repo, about, self.policy, headers), None
            return await files.fetch(tag, format_, into / "files", progress, _license(about))

    async def search(self, query: str, limit: int) -> list[SourceResult]:
        """Return the most downloaded models whose name contains the query. Raises the errors of `pull`."""
        token = get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        parameters: dict[str, str | int] = {"search": query, "sort": "downloads", "limit": limit}
        async with client(self.policy) as http:
            request = http.build_request("GET", f"{self._home()}/api/models", params=parameters, headers=headers)
            hits: list[_Hit] = await get_json(http, request, "search", list[_Hit])
        return [
            SourceResult(
                "huggingface", hit.id, hit.id.rpartition("/")[2], TYPES.get(hit.pipeline_tag or ""), None, hit.downloads
            )
            for hit in hits[:limit]
        ]


async def _about(
    http: httpx2.AsyncClient, endpoint: str, repo: str, revision: str | None, headers: dict[str, str]
) -> _About:
    path = f"/revision/{quote(revision, safe='')}" if revision else ""
    request = http.build_request("GET", f"{endpoint}/api/models/{repo}{path}?blobs=true", headers=headers)
    about: _About = await get_json(http, request, repo, _About, _explain)
    return about


def _explain(response: httpx2.Response, what: str, host: str) -> AimaError | None:
    """Return the error for a response about a repository. The hub states the cause in a header.

    For a private repository, the hub answers as for a repository that does not exist.
    """
    code = response.headers.get("X-Error-Code")
    if code == "RevisionNotFound":
        return NotFound(f"{what} has no revision with the name of the tag", reason="TAG_NOT_FOUND")
    if code == "RepoNotFound" or (response.status_code == 401 and code is None):
        return NotFound(
            f"{host} has no {what}, or it is private: check the name, or set HF_TOKEN", reason="REPO_NOT_FOUND"
        )
    return refusal(response, what, host)


def _repository(
    http: httpx2.AsyncClient, endpoint: str, repo: str, about: _About, policy: Policy, headers: dict[str, str]
) -> Repository:
    files = [
        RepoFile(file.rfilename, file.lfs.size if file.lfs else file.size, file.lfs.sha256 if file.lfs else None)
        for file in about.siblings
    ]
    # The URL names the commit, so that all files are of one revision, also after a download is resumed.
    base = f"{endpoint}/{repo}/resolve/{quote(about.sha or 'main', safe='')}"
    return Repository(http, repo, files, lambda file: f"{base}/{quote(file.path)}", policy, headers)


def _license(about: _About) -> str | None:
    """Return the licence from the tags of the repository."""
    for tag in about.tags:
        if tag.startswith("license:"):
            return tag.removeprefix("license:")
    return None
