"""Settings of the engine domain."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section


class EngineSettings(Section):
    """`[engine]`"""

    host: str = Field("127.0.0.1", description="Address that engines listen on.")
    address: str = Field("", description="Name by which other machines reach engines here; default: the host above.")
    port_min: int = Field(18100, ge=1024, le=65535, description="First port that instances get.")
    port_max: int = Field(18999, ge=1024, le=65535, description="Last port that instances get.")
