"""The settings of the resource domain."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section


class ResourceSettings(Section):
    """The section `[resource]`: the memory that is kept for the system, and the interval of measurements."""

    reserve: float = Field(
        0.1, ge=0, le=0.9, description="Fraction of the machine's memory to keep for the system; at least 512 MiB."
    )
    interval: float = Field(5.0, gt=0, le=3600, description="Seconds between two measurements of the machine's memory.")
