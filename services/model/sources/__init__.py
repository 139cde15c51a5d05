"""The sources of models, one file each; `SOURCES` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from services.model.sources.huggingface import HuggingFace
from services.model.sources.modelscope import ModelScope
from services.model.sources.ollama import Ollama
from services.model.sources.package import Package
from services.model.sources.port import Progress, Pulled, Source, SourceResult

__all__ = ["SOURCES", "Progress", "Pulled", "Source", "SourceResult", "others"]

SOURCES: Mapping[str, Source] = MappingProxyType(
    {"package": Package(), "huggingface": HuggingFace(), "modelscope": ModelScope(), "ollama": Ollama()}
)


def others(source: str, repo: str, format_: str | None) -> list[str]:
    """Return the other sources that may have a repository of this name, in this format."""
    count = len(repo.split("/"))
    return [
        name
        for name, other in SOURCES.items()
        if name != source and count in other.parts and (not format_ or not other.formats or format_ in other.formats)
    ]
