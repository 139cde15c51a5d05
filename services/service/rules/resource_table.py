"""The resource classes as values, read from resource_table.yaml, which explains them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field


class Share(BaseModel):
    """The share of one resource class; see resource_table.yaml for the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context_length: int = Field(ge=128)
    slots: int = Field(ge=1)
    cores: float = Field(gt=0, le=1)


RESOURCE_TABLE: Mapping[str, Share] = {
    name: Share.model_validate(share)
    for name, share in yaml.safe_load(Path(__file__).with_name("resource_table.yaml").read_text()).items()
}
