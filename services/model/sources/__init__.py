"""The sources of models, one file each; `SOURCES` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from services.model.sources.huggingface import HuggingFace
from services.model.sources.modelscope import ModelScope
from services.model.sources.ollama import Ollama
from services.model.sources.package import Package
from services.model.sources.port import Progress, Pulled, Source, SourceResult

__all__ = ["SOURCES", "Progress", "Pulled", "Source", "SourceResult"]

SOURCES: Mapping[str, Source] = MappingProxyType(
    {"package": Package(), "huggingface": HuggingFace(), "modelscope": ModelScope(), "ollama": Ollama()}
)
