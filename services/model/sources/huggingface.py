"""Models from the Hugging Face hub, or from a server that speaks its API (`HF_ENDPOINT`, or a pull's `mirror`).

The list of files comes through `huggingface_hub`; the files come through our own download, which resumes and checks.
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
from services.model.sources.repo_files import RepoFile, choose, fetch, has_gguf

HUB = "https://huggingface.co"
T = TypeVar("T")

TYPES = {
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
    """The hub at `endpoint`; without one at `HF_ENDPOINT`, or at the public address."""

    endpoint: str | None = None
    policy: Policy = PATIENT
    parts: ClassVar = (1, 2)
    searches: ClassVar = True

    def _home(self) -> str:
        return check_address(self.endpoint or os.environ.get("HF_ENDPOINT") or HUB)

    async def pull(self, repo: str, tag: str | None, into: Path, progress: Progress, mirror: str | None) -> Pulled:
        """Fetch a repository: see `Source.pull`.

        `tag` is a quantisation ("Q4_K_M") where the repository offers GGUF files, otherwise a revision. The token of
        the user goes to the configured hub only, never to a mirror that a request names.
        """
        check_repo(repo, self.parts)
        check_tag(tag)
        endpoint = check_mirror(mirror) or self._home()
        token = get_token() if mirror is None else None
        api = HfApi(endpoint=endpoint, token=token or False)
        info = await self._ask(repo, lambda: self._info(api, repo, None))
        files = _files(info)
        if tag is not None and not has_gguf(files):
            info = await self._ask(repo, lambda: self._info(api, repo, tag))
            files = _files(info)
        chosen = choose(files, tag, repo)
        # The commit is named, so that all files are of one moment and a resumed file is the same file.
        base = f"{endpoint}/{repo}/resolve/{quote(info.sha or 'main', safe='')}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with client(self.policy) as http:
            return await fetch(
                http,
                chosen,
                lambda file: f"{base}/{quote(file.path)}",
                into,
                progress,
                self.policy,
                headers,
                _license(info),
            )

    async def search(self, query: str, limit: int) -> list[SourceResult]:
        """Return the most downloaded models whose name contains the query. Raises as `pull` does.

        `huggingface_hub` would ask a hub that is away for half a minute, in a thread that nothing ends.
        """
        token = get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        asked: dict[str, str | int] = {"search": query, "sort": "downloads", "limit": limit}
        async with client(self.policy) as http:
            request = http.build_request("GET", f"{self._home()}/api/models", params=asked, headers=headers)
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

    async def _ask(self, what: str, question: Callable[[], T]) -> T:
        """Ask the hub's API in a thread, and say in our words what went wrong."""
        try:
            async with asyncio.timeout(2 * (self.policy.connect + self.policy.read)):
                return await asyncio.to_thread(question)
        except RevisionNotFoundError as fault:
            raise NotFound(f"{what} has no such revision", reason="TAG_NOT_FOUND") from fault
        except GatedRepoError as fault:
            raise Forbidden(f"{what} is gated: accept its terms and set HF_TOKEN", reason="GATED") from fault
        except RepositoryNotFoundError as fault:
            raise NotFound(f"the hub has no {what}, or hides it", reason="REPO_NOT_FOUND") from fault
        except HfHubHTTPError as fault:
            declared = refusal(fault.response.status_code, what)
            raise (declared or unreachable(fault, self._home())) from fault
        except (httpx2.HTTPError, TimeoutError, OSError) as fault:
            raise unreachable(fault, self._home()) from fault
        except (ValueError, KeyError, TypeError, AttributeError) as fault:  # an answer of another shape
            raise ExecutionFailed(f"the hub's answer about {what} is not understood", reason="BAD_ANSWER") from fault


def _files(info: ModelInfo) -> list[RepoFile]:
    return [
        RepoFile(file.rfilename, file.lfs.size if file.lfs else file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or []
    ]


def _license(info: ModelInfo) -> str | None:
    """Return the licence that the repository is tagged with."""
    for tag in info.tags or []:
        if tag.startswith("license:"):
            return tag.removeprefix("license:")
    return None
