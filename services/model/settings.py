"""The settings of the model domain: section `[model]`, or `AIMA_MODEL_<KEY>`."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section


class ModelSettings(Section):
    """Limits of pulls and searches."""

    pulls_at_once: int = Field(2, ge=1, le=16, description="Number of concurrent pulls; further pulls wait.")
    pull_attempts: int = Field(
        3, ge=1, le=20, description="Maximum number of attempts of a pull while its hub does not answer."
    )
    pull_timeout: float = Field(86_400, ge=10, le=604_800, description="Seconds after which an unfinished pull fails.")
    search_timeout: float = Field(10, ge=1, le=60, description="Seconds after which the search of a hub fails.")
