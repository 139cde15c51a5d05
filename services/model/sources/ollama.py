"""Pulls models from an Ollama registry (`OLLAMA_REGISTRY`). The protocol is that of a Docker registry v2.

A model has a layer with a GGUF file, or a layer for each part of a split one, and usually a layer with the licence.

The media types of the layers are defined in github.com/ollama/ollama, server/internal/manifest/manifest.go.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import httpx2
import msgspec

from aima_core.errors import AimaError, ExecutionFailed, ValidationFailed
from services.model.sources.hub_http import PATIENT, Policy, client, get_bytes, get_json
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

REGISTRY = "https://registry.ollama.ai"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MODEL, LICENSE = "application/vnd.ollama.image.model", "application/vnd.ollama.image.license"
ADAPTER = "application/vnd.ollama.image.adapter"
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MAX_LICENSE = 1 << 20  # bytes


class _Layer(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int


class _Manifest(msgspec.Struct):
    layers: list[_Layer]


@dataclass(frozen=True)
class Ollama:
    """The registry at the URL `endpoint`; default: the URL in `OLLAMA_REGISTRY`, or https://registry.ollama.ai."""

    endpoint: str | None = None
    policy: Policy = PATIENT
    formats: ClassVar = ("gguf",)
    parts: ClassVar = (1, 2)
    searches: ClassVar = False

    def _home(self) -> str:
        return check_address(self.endpoint or os.environ.get("OLLAMA_REGISTRY") or REGISTRY, "OLLAMA_REGISTRY")

    async def pull(
        self,
        repo: str,
        tag: str | None,
        into: Path,
        progress: Progress,
        mirror: str | None,
        format_: str | None = None,  # noqa: ARG002  the registry has no other format
    ) -> Pulled:
        """Download the weights of `name` or `owner/name`. See `Source.pull`. The default tag is "latest"."""
        check_repo(repo, self.parts)
        tag = check_tag(tag) or "latest"
        path_on_hub = repo if "/" in repo else f"library/{repo}"
        base = f"{check_mirror(mirror) or self._home()}/v2/{path_on_hub}"
        async with client(self.policy) as http:
            request = http.build_request("GET", f"{base}/manifests/{tag}", headers={"Accept": MANIFEST})
            manifest: _Manifest = await get_json(http, request, f"{repo}:{tag}", _Manifest)
            layers = _weights(manifest, f"{repo}:{tag}")
            license_name = await _license(http, base, manifest)
            name = f"{repo.rsplit('/', 1)[-1]}-{tag}"
            files = [
                RepoFile(f"{name}{f'.layer{number}' if len(layers) > 1 else ''}.gguf", layer.size, layer.digest[7:])
                for number, layer in enumerate(layers, 1)
            ]
            repository = Repository(
                http, f"{repo}:{tag}", files, lambda file: f"{base}/blobs/sha256:{file.sha256}", self.policy
            )
            return await repository.fetch(None, "gguf", into, progress, license_name, only=True)

    async def search(self, query: str, limit: int) -> list[SourceResult]:  # noqa: ARG002  the registry has no search
        """Return an empty list: the registry's protocol has no search."""
        return []


def _weights(manifest: _Manifest, title: str) -> list[_Layer]:
    """Return the layers with weights: one, or the parts of a split model.

    Raises ValidationFailed (UNSUPPORTED_FORMAT) and ExecutionFailed (BAD_ANSWER).
    """
    if any(layer.media_type == ADAPTER for layer in manifest.layers):
        raise ValidationFailed(
            f"{title} needs an adapter (LoRA), which AIMA does not apply; without it, the model answers differently",
            reason="UNSUPPORTED_FORMAT",
            path=title,
        )
    layers = list({layer.digest: layer for layer in manifest.layers if layer.media_type == MODEL}.values())
    if not layers:
        raise ValidationFailed(f"{title} has no GGUF file", reason="UNSUPPORTED_FORMAT", path=title)
    if any(not DIGEST.fullmatch(layer.digest) or layer.size < 0 for layer in layers):
        raise ExecutionFailed(f"the manifest of {title} has an invalid digest or size", reason="BAD_ANSWER")
    return layers


async def _license(http: httpx2.AsyncClient, base: str, manifest: _Manifest) -> str | None:
    """Return the first line of the licence; None if there is none. A pull must not fail without a licence."""
    for layer in manifest.layers:
        if layer.media_type == LICENSE and DIGEST.fullmatch(layer.digest):
            try:
                request = http.build_request("GET", f"{base}/blobs/{layer.digest}")
                text = await get_bytes(http, request, "the licence", MAX_LICENSE)
            except AimaError:
                return None
            lines = text.decode("utf-8", "replace").split("\n")
            return next((line.strip()[:100] for line in lines if line.strip()), None)
    return None
