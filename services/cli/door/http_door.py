"""The units over HTTP: a gateway at an URL, asked as any program would ask it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec

from aima_core import call as calls
from aima_core.bus.client import Answer
from aima_core.bus.directory import DomainInfo, UnitInfo
from aima_core.errors import InvalidRequest, Unavailable, ValidationFailed, from_body
from services.cli.door.door import last

_API = "/api/v2"
_BELOW = (_API, "/api", "/v1", "/mcp", "/docs")  # addresses that people copy for one that is meant for all doors
_CONNECT = 5.0  # seconds
_QUIET = 60.0  # seconds without a byte; a gateway that is at work sends something every 15

_decode = msgspec.json.decode


class _Domains(msgspec.Struct):
    domains: list[DomainInfo]


@contextlib.asynccontextmanager
async def http_door(url: str, api_key: str) -> AsyncIterator[HttpDoor]:
    """Open the door at `http://`, `https://` or `unix:/path`; nothing is sent before the first question."""
    if not url.startswith(("http://", "https://", "unix:")):
        raise ValidationFailed(
            f"--url {url}: expected http://host:port, https://host:port or unix:/path",
            fields=[{"field": "--url", "expected": "http://host:port, https://host:port or unix:/path"}],
        )
    path = url.removeprefix("unix:") if url.startswith("unix:") else None
    async with httpx2.AsyncClient(
        base_url="http://localhost" if path else url.rstrip("/"),
        transport=httpx2.AsyncHTTPTransport(uds=path) if path else None,
        timeout=httpx2.Timeout(_QUIET, connect=_CONNECT),
        headers={"User-Agent": "aima", **({"Authorization": f"Bearer {api_key}"} if api_key else {})},
    ) as http:
        yield HttpDoor(http, url)


class HttpDoor:
    """A gateway. What it refuses is raised as the error that the unit, or the gateway itself, has told."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url

    async def domains(self, name: str = "") -> dict[str, DomainInfo]:
        """Return the domains with those of their units that the key reaches."""
        about = {"full": "true", **({"domain": name} if name else {})}
        found = self._read(await self._get(f"{_API}/units", about), _Domains)
        return {info.name: info for info in found.domains}

    async def describe(self, unit: str) -> UnitInfo:
        """Ask for one unit in full."""
        found: UnitInfo = self._read(await self._get(f"{_API}/schema/{quote(unit, safe='')}"), UnitInfo)
        return found

    async def ask(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer."""
        return await last(self.stream(unit, data, timeout=timeout, headers=headers or {}), unit)

    async def stream(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str]
    ) -> AsyncIterator[Any | Answer]:
        """Yield the parts and the answer, which come as server-sent events."""
        if calls.PRINCIPAL in headers:
            raise InvalidRequest("--as: over HTTP the key says who asks", reason="KEY_SAYS_WHO")
        sent = {**headers, calls.TIMEOUT: f"{timeout:.3f}", "Accept": "text/event-stream"}
        body = {"unit": unit, "input": data}
        with self._trouble():
            async with self._http.stream("POST", f"{_API}/execute", json=body, headers=sent) as response:
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    await response.aread()
                    raise self._refusal(response)
                async for kind, text in _events(response.aiter_lines()):
                    told = self._json(text)
                    if kind == "part":
                        yield told
                    elif kind == "result":
                        yield Answer(told["data"], told.get("meta", {}))
                        return
                    elif kind == "error":
                        raise from_body(told.get("error") or {})
        raise Unavailable(f"the gateway at {self._url} went away in the middle of its answer", reason="NO_GATEWAY")

    async def _get(self, path: str, query: Mapping[str, str] | None = None) -> httpx2.Response:
        with self._trouble():
            response = await self._http.get(path, params=query)
        if response.status_code != 200:
            raise self._refusal(response)
        return response

    def _read(self, response: httpx2.Response, shape: Any) -> Any:
        try:
            return _decode(response.content, type=shape)
        except msgspec.MsgspecError:
            raise self._stranger(response) from None

    def _json(self, text: str) -> dict[str, Any]:
        try:
            return _decode(text, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise Unavailable(f"{self._url} does not speak as a gateway does", reason="NO_GATEWAY") from error

    def _refusal(self, response: httpx2.Response) -> Exception:
        try:
            told = _decode(response.content, type=dict[str, Any])["error"]
            return self._misled(told) or from_body(told)
        except (msgspec.MsgspecError, KeyError, AttributeError, TypeError):
            return self._stranger(response)

    def _misled(self, told: Mapping[str, Any]) -> ValidationFailed | None:
        """Return the refusal of an address below the gateway's, such as its door for OpenAI's clients; else None."""
        details = told.get("details") or {}
        details = details.get("details") or details  # that door puts ours into its own
        url = self._url.rstrip("/")
        root = next((url.removesuffix(below) for below in _BELOW if url.endswith(below)), "")
        if not root or not (details.get("reason") == "NO_SUCH_PATH" or url.endswith(_API)):
            return None
        expected = f"the gateway's root address, {root}"
        return ValidationFailed(
            f"--url {self._url}: expected {expected}", fields=[{"field": "--url", "expected": expected}]
        )

    def _stranger(self, response: httpx2.Response) -> Unavailable:
        return Unavailable(
            f"what answers at {self._url} is no gateway of ours: status {response.status_code}",
            reason="NO_GATEWAY",
            url=self._url,
        )

    @contextlib.contextmanager
    def _trouble(self) -> Any:
        try:
            yield
        except httpx2.ConnectError as error:
            raise Unavailable(f"no gateway answers at {self._url}", reason="NO_GATEWAY", url=self._url) from error
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            raise Unavailable(
                f"the gateway at {self._url} does not answer: {type(error).__name__}",
                reason="NO_GATEWAY",
                url=self._url,
            ) from error


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str]]:
    """Yield the kind and the data of each server-sent event; comments are passed over."""
    kind = ""
    data: list[str] = []
    async for line in lines:
        if not line:
            if data:
                yield kind or "message", "\n".join(data)
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
