"""Pulls models from the Hugging Face hub, or from a server with the same API (`HF_ENDPOINT`, or a pull's `mirror`).

`huggingface_hub` only lists the files. `download.py` downloads them, resumes downloads and checks digests.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
from huggingface_hub import HfApi, ModelInfo, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from aima_core.errors import ExecutionFailed, Forbidden, NotFound
from services.model.sources.hub_http import PATIENT, Policy, client, get_json, refusal, unreachable
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

HUB = "https://huggingface.co"
T = TypeVar("T")

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
        return check_address(self.endpoint or os.environ.get("HF_ENDPOINT") or HUB, "HF_ENDPOINT")

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
        host = httpx2.URL(endpoint).host
        token = get_token() if mirror is None else None
        api = HfApi(endpoint=endpoint, token=token or False)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with client(self.policy) as http:
            info = await self._query(repo, host, lambda: self._info(api, repo, None))
            files = _repository(http, endpoint, repo, info, self.policy, headers)
            if tag is not None and not await files.chooses(tag, format_):
                info = await self._query(repo, host, lambda: self._info(api, repo, tag))
                files, tag = _repository(http, endpoint, repo, info, self.policy, headers), None
            return await files.fetch(tag, format_, into / "files", progress, _license(info))

    async def search(self, query: str, limit: int) -> list[SourceResult]:
        """Return the most downloaded models whose name contains the query. Raises the errors of `pull`.

        This method does not use `huggingface_hub`, which retries an unreachable hub for half a minute, in a thread that
        AIMA cannot end.
        """
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

    def _info(self, api: HfApi, repo: str, revision: str | None) -> ModelInfo:
        timeout = self.policy.connect + self.policy.read
        return api.model_info(repo, revision=revision, files_metadata=True, timeout=timeout)

    async def _query(self, repo: str, host: str, request: Callable[[], T]) -> T:
        """Query the hub's API in a thread; convert its exceptions."""
        try:
            async with asyncio.timeout(2 * (self.policy.connect + self.policy.read)):
                return await asyncio.to_thread(request)
        except RevisionNotFoundError as fault:
            raise NotFound(f"{repo} has no revision with the name of the tag", reason="TAG_NOT_FOUND") from fault
        except GatedRepoError as fault:
            raise Forbidden(f"{repo} is gated: accept its terms on the hub and set HF_TOKEN", reason="GATED") from fault
        except RepositoryNotFoundError as fault:
            raise NotFound(
                f"{host} has no {repo}, or it is private: check the name, or set HF_TOKEN",
                reason="REPO_NOT_FOUND",
            ) from fault
        except HfHubHTTPError as fault:
            error = refusal(fault.response.status_code, repo, host)
            raise (error or unreachable(fault, host)) from fault
        except (httpx2.HTTPError, TimeoutError, OSError) as fault:
            raise unreachable(fault, host) from fault
        except (ValueError, KeyError, TypeError, AttributeError) as fault:  # the response has unexpected fields
            raise ExecutionFailed(f"{host} sent an unexpected response about {repo}", reason="BAD_ANSWER") from fault


def _repository(
    http: httpx2.AsyncClient, endpoint: str, repo: str, info: ModelInfo, policy: Policy, headers: dict[str, str]
) -> Repository:
    files = [
        RepoFile(file.rfilename, file.lfs.size if file.lfs else file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or []
    ]
    # The URL names the commit, so that all files are of one revision, also after a download is resumed.
    base = f"{endpoint}/{repo}/resolve/{quote(info.sha or 'main', safe='')}"
    return Repository(http, repo, files, lambda file: f"{base}/{quote(file.path)}", policy, headers)


def _license(info: ModelInfo) -> str | None:
    """Return the licence from the tags of the repository."""
    for tag in info.tags or []:
        if tag.startswith("license:"):
            return tag.removeprefix("license:")
    return None
