"""Defines the risks of units. Code that only reads units' descriptions imports this module and needs no pydantic."""

from __future__ import annotations

from typing import Literal, get_args

Risk = Literal["low", "medium", "high"]
RISKS: tuple[str, ...] = get_args(Risk)
