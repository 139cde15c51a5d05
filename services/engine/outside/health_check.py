"""Health checks of an engine over HTTP. Must not depend on dialects."""

from __future__ import annotations

import asyncio
import ssl

import httpx2
import msgspec

_MODELS_TIMEOUT = 5.0  # seconds; engines answer /v1/models from memory
# Engines speak plain HTTP. Without this context each client loads the machine's certificates, which takes 38 ms.
_PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def healthy(endpoint: str, path: str, timeout: float) -> bool:
    """Return whether `GET endpoint + path` answers 2xx within `timeout` seconds; False for any failure."""
    # One connection per check: llama.cpp may close an idle one just as it is reused, which would look like a failure.
    # trust_env is off because a proxy of the environment is for external hosts.
    try:
        async with (
            asyncio.timeout(timeout),
            httpx2.AsyncClient(verify=_PLAIN, timeout=timeout, trust_env=False) as client,
        ):
            response = await client.get(endpoint.rstrip("/") + path, headers={"Connection": "close"})
            return response.is_success
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError):
        return False


async def served_model(endpoint: str, fallback: str) -> str:
    """Return the engine's name for its model: the first of `/v1/models`, or `fallback` if the list is unusable."""
    try:
        async with asyncio.timeout(_MODELS_TIMEOUT), httpx2.AsyncClient(verify=_PLAIN, trust_env=False) as client:
            response = await client.get(f"{endpoint}/v1/models", headers={"Connection": "close"})
            return str(msgspec.json.decode(response.content)["data"][0]["id"])
    except (httpx2.HTTPError, msgspec.DecodeError, LookupError, TypeError, TimeoutError, OSError):
        return fallback
