"""The settings of the engine domain: section `[engine]`, or `AIMA_ENGINE_<KEY>`."""

from __future__ import annotations

from pydantic import Field, model_validator

from aima_core.settings import Section


class EngineSettings(Section):
    """Addresses and ports of engine instances."""

    host: str = Field("127.0.0.1", description="Address that engines listen on.")
    address: str = Field("", description="Name or address by which other machines reach the engines; default: `host`.")
    port_min: int = Field(18100, ge=1024, le=65535, description="First port of the range for instances.")
    port_max: int = Field(18999, ge=1024, le=65535, description="Last port of the range for instances.")

    @model_validator(mode="after")
    def _in_order(self) -> EngineSettings:
        if self.port_min > self.port_max:
            raise ValueError(f"port_min ({self.port_min}) must not be above port_max ({self.port_max})")
        return self
