"""Asks the hubs what they have, all at once; what does not answer is named, and keeps the others from nothing."""

from __future__ import annotations

import asyncio

from aima_core.errors import AimaError, Unavailable
from aima_core.structured_logs import logger
from services.model import units as u
from services.model.sources import SOURCES, SourceResult


async def search(query: u.SearchModels, timeout: float) -> u.SearchResults:
    """Return the hits of every hub that can be searched. Raises Unavailable when none of them answered."""
    asked = [name for name in SOURCES if query.source in (None, name)]
    silent = [name for name in asked if not SOURCES[name].searches]
    issues = [f"{name}: cannot be searched; pull by name" for name in silent if query.source]
    asking = [name for name in asked if name not in silent]
    answers = await asyncio.gather(*(_ask(name, query, timeout) for name in asking))
    faults = [answer for answer in answers if isinstance(answer, str)]
    if asking and len(faults) == len(asking):
        raise Unavailable(f"no hub answers: {'; '.join(faults)}", reason="HUB_UNREACHABLE", issues=faults)
    found = [hit for answer in answers if not isinstance(answer, str) for hit in answer]
    return u.SearchResults(
        results=[
            u.SearchResult(
                source=hit.source,
                repo=hit.repo,
                name=hit.name,
                type=hit.type or "",
                size=hit.size,
                downloads=hit.downloads,
            )
            for hit in found
            if query.type is None or hit.type in (None, query.type)
        ],
        issues=issues + faults,
    )


async def _ask(name: str, query: u.SearchModels, timeout: float) -> list[SourceResult] | str:
    """Return a hub's hits, or what is wrong with it."""
    try:
        async with asyncio.timeout(timeout):
            return await SOURCES[name].search(query.query, query.limit)
    except TimeoutError:
        return f"{name}: no answer within {timeout:g} s"
    except AimaError as refusal:
        return f"{name}: {refusal.message}"
    except Exception:
        logger.error("search broke", source=name, exc_info=True)
        return f"{name}: internal error"
