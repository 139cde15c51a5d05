"""Looks whether an engine answers. Knows nothing of models or dialects."""

from __future__ import annotations

import asyncio
import ssl

import httpx2
import msgspec

_MODELS_TIMEOUT = 5.0  # seconds; it answers from memory
# Engines speak plain HTTP. Without this every client reads the machine's certificates: 38 ms for each look.
_PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def healthy(endpoint: str, path: str, timeout: float) -> bool:
    """Return whether `GET endpoint + path` answers 2xx within `timeout` seconds. Never raises for what is not."""
    # A connection each time: llama.cpp closes idle ones just when they are used again, which would look like a death.
    # No proxy either: the environment's is for the world outside.
    try:
        async with (
            asyncio.timeout(timeout),
            httpx2.AsyncClient(verify=_PLAIN, timeout=timeout, trust_env=False) as client,
        ):
            reply = await client.get(endpoint.rstrip("/") + path, headers={"Connection": "close"})
            return reply.is_success
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError):
        return False


async def served_model(endpoint: str, fallback: str) -> str:
    """Return the name by which the engine knows its model: the first of `/v1/models`, `fallback` when there is none."""
    try:
        async with asyncio.timeout(_MODELS_TIMEOUT), httpx2.AsyncClient(verify=_PLAIN, trust_env=False) as client:
            reply = await client.get(f"{endpoint}/v1/models", headers={"Connection": "close"})
            return str(msgspec.json.decode(reply.content)["data"][0]["id"])
    except (httpx2.HTTPError, msgspec.DecodeError, LookupError, TypeError, TimeoutError, OSError):
        return fallback
