"""Settings of the service domain."""

from __future__ import annotations

from pydantic import Field

from aima_core.settings import Section
from services.service.rules.replica_decider import LONGEST_DRAIN


class ServiceSettings(Section):
    """The section `[service]`: how services are run."""

    drain: float = Field(
        30, ge=0, le=LONGEST_DRAIN, description="Seconds that a leaving replica gets to finish its requests."
    )
    grace: float = Field(
        10,
        ge=0,
        le=3600,
        description="Seconds without a reply to the health check, once noticed, after which a replica is replaced.",
    )
    calm: float = Field(
        60, ge=0, le=86_400, description="Seconds that fewer replicas must suffice before autoscaling removes any."
    )
