"""The risk of a unit. A module of its own: whoever only reads descriptions of units need not import pydantic."""

from __future__ import annotations

from typing import Literal, get_args

Risk = Literal["low", "medium", "high"]
RISKS: tuple[str, ...] = get_args(Risk)
