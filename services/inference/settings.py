"""The settings of the inference domain."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section


class InferenceSettings(Section):
    """How requests wait."""

    queue: int = Field(
        64, ge=0, le=10_000, description="Requests that may wait for each service; those beyond are refused at once."
    )
