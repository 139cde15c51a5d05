"""One request to an engine together with its answer: the input of the functions that read answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aima_engines.engine_answer import Engine, EngineAnswer

SendPart = Callable[[dict[str, Any]], Awaitable[None]]
"""Sends a part of the answer to a caller that requests parts. Does nothing for any other caller."""


@dataclass(frozen=True)
class Exchange:
    """A request to an engine. `fields`: the request's fields, without the model. `answer`: the answer, not read yet.

    A kind that needs more requests, such as polls for a video, sends them to `engine`.
    """

    engine: Engine
    fields: Mapping[str, Any]
    answer: EngineAnswer
    send: SendPart
