"""Searches all hubs concurrently. If a hub fails, the result names it and contains the hits of the other hubs."""

from __future__ import annotations

import asyncio

from aima_core.errors import AimaError, Unavailable
from aima_core.structured_logs import logger
from services.model import units as u
from services.model.sources import SOURCES, SourceResult


async def search(query: u.SearchModels, timeout: float) -> u.SearchResults:
    """Return the hits of all hubs that support search. Raises Unavailable (HUB_UNREACHABLE) if none answers."""
    selected = [name for name in SOURCES if query.source in (None, name)]
    searchable = [name for name in selected if SOURCES[name].searches]
    unsearchable = [name for name in selected if name not in searchable]
    issues = [f"{name}: cannot be searched; pull by name" for name in unsearchable if query.source]
    answers = await asyncio.gather(*(_search(name, query, timeout) for name in searchable))
    faults = [answer for answer in answers if isinstance(answer, str)]
    if searchable and len(faults) == len(searchable):
        raise Unavailable(f"no hub has answered: {'; '.join(faults)}", reason="HUB_UNREACHABLE", issues=faults)
    hits = [hit for answer in answers if not isinstance(answer, str) for hit in answer]
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
            for hit in hits
            if query.type is None or hit.type in (None, query.type)
        ],
        issues=issues + faults,
    )


async def _search(name: str, query: u.SearchModels, timeout: float) -> list[SourceResult] | str:
    """Return the hits of a hub. If the search fails, return a text with the hub's name and the cause."""
    try:
        async with asyncio.timeout(timeout):
            return await SOURCES[name].search(query.query, query.limit)
    except TimeoutError:
        return f"{name}: no answer within {timeout:g} s"
    except AimaError as refusal:
        return f"{name}: {refusal.message}"
    except Exception:
        logger.error("a search failed with an unexpected error", source=name, exc_info=True)
        return f"{name}: internal error; the log of the model domain has the cause"
