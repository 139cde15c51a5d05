"""The settings of the service domain."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section
from services.service.rules.replica_decider import LONGEST_DRAIN


class ServiceSettings(Section):
    """The section `[service]`: limits for the operation of services."""

    drain: float = Field(
        30, ge=0, le=LONGEST_DRAIN, description="Seconds that a leaving replica gets to finish its requests."
    )
    grace: float = Field(
        10,
        ge=0,
        le=3600,
        description="Seconds without a reply to the health check after which AIMA replaces a replica.",
    )
    calm: float = Field(
        60,
        ge=0,
        le=86_400,
        description="Seconds for which fewer replicas must be enough before autoscaling removes replicas.",
    )
