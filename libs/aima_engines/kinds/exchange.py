"""One request to an engine and its answer, as a kind of request reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aima_engines.engine_answer import Engine, EngineAnswer

SendPart = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends a part of the answer, such as a piece of its text, to the caller; does nothing if the caller wants no parts."""


@dataclass(frozen=True)
class Exchange:
    """`fields`: those of the request, without the model; `answer`: the engine's answer, not read yet.

    `engine` serves kinds that need several requests.
    """

    engine: Engine
    fields: Mapping[str, Any]
    answer: EngineAnswer
    send: SendPart
