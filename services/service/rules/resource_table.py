"""Reads the resource classes from resource_table.yaml. That file explains the classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field


class Share(BaseModel):
    """The numbers of one resource class. resource_table.yaml explains the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context_length: int = Field(ge=128)
    slots: int = Field(ge=1)
    cores: float = Field(gt=0, le=1)


RESOURCE_TABLE: Mapping[str, Share] = {
    name: Share.model_validate(share)
    for name, share in yaml.safe_load(Path(__file__).with_name("resource_table.yaml").read_text()).items()
}
