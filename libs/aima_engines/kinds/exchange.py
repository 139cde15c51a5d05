"""One request to an engine together with its answer: the input of the functions that read answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aima_engines.engine_answer import Engine, EngineAnswer

SendPart = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends a part of the answer, such as a piece of its text, to a caller that requests parts; else does nothing."""


@dataclass(frozen=True)
class Exchange:
    """A request's `fields`, without the model, and the engine's `answer`, still unread.

    Kinds that need more requests, such as the poll of a video, send them to `engine`.
    """

    engine: Engine
    fields: Mapping[str, Any]
    answer: EngineAnswer
    send: SendPart
