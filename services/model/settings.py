"""What can be set about models: section `[model]`, or `AIMA_MODEL_<KEY>`."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section


class ModelSettings(Section):
    """The registry of models."""

    pulls_at_once: int = Field(2, ge=1, le=16, description="Models that are fetched at the same time; others wait.")
    pull_attempts: int = Field(3, ge=1, le=20, description="How often a pull is tried while its hub does not answer.")
    pull_timeout: float = Field(86_400, ge=10, le=604_800, description="Seconds until a pull counts as failed.")
    search_timeout: float = Field(10, ge=1, le=60, description="Seconds that each hub gets to answer a search.")
