"""The settings of the device domain."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section


class DeviceSettings(Section):
    """The section `[device]`: sampling of the devices."""

    interval: float = Field(2.0, gt=0, le=3600, description="Seconds between two samples of each device.")
    history: int = Field(300, ge=1, le=100_000, description="Number of samples of each device that are kept in memory.")
