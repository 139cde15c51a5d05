"""The settings of the inference domain."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section


class InferenceSettings(Section):
    """The section `[inference]`: the queues of waiting requests."""

    queue: int = Field(
        64,
        ge=0,
        le=10_000,
        description="Maximum number of waiting requests per service. AIMA refuses further requests.",
    )
