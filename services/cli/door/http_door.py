"""The door over HTTP: a gateway at a URL, used through its public API."""

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
from aima_core.errors import InvalidRequest, Timeout, Unavailable, ValidationFailed, from_body
from aima_engines.sse_parser import Splitter, data_of, type_of

_API = "/api/v2"
_BELOW = (_API, "/api", "/v1", "/mcp", "/docs")  # paths that users paste together with the gateway's root URL
_CONNECT = 5.0  # seconds to connect
_GRACE = 2.0  # seconds after its deadline in which a call still waits for the gateway's own answer
_QUIET = 60.0  # seconds without a byte until a call fails; a gateway at work sends a comment every 15 s

_decode = msgspec.json.decode


class _Domains(msgspec.Struct):
    domains: list[DomainInfo]


@contextlib.asynccontextmanager
async def http_door(url: str, api_key: str) -> AsyncIterator[HttpDoor]:
    """Open the door to a gateway. The first call connects. Raises ValidationFailed for an invalid URL."""
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
    """A gateway as a `Door`. Raises an error of a unit or of the gateway as the AimaError with the same code."""

    def __init__(self, http: httpx2.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url

    async def domains(self, name: str = "") -> dict[str, DomainInfo]:
        """Return the domains with the units that the key may call."""
        query = {"full": "true", **({"domain": name} if name else {})}
        answer = self._read(await self._get(f"{_API}/units", query), _Domains)
        return {info.name: info for info in answer.domains}

    async def describe(self, unit: str) -> UnitInfo:
        answer: UnitInfo = self._read(await self._get(f"{_API}/schema/{quote(unit, safe='')}"), UnitInfo)
        return answer

    async def ask(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Answer:
        async for part in self.stream(unit, data, timeout=timeout, headers=headers or {}):
            if isinstance(part, Answer):
                return part
        raise Timeout(f"{unit} did not answer", unit=unit)

    async def stream(
        self, unit: str, data: Mapping[str, Any], *, timeout: float, headers: Mapping[str, str]
    ) -> AsyncIterator[Any | Answer]:
        if calls.PRINCIPAL in headers:
            raise InvalidRequest(
                "--as cannot be used with --url: over HTTP the API key determines the principal", reason="KEY_SAYS_WHO"
            )
        sent = {**headers, calls.TIMEOUT: f"{timeout:.3f}", "Accept": "text/event-stream"}
        body = {"unit": unit, "input": data}
        with self._trouble():
            quiet = httpx2.Timeout(min(_QUIET, timeout + _GRACE), connect=_CONNECT)
            async with self._http.stream("POST", f"{_API}/execute", json=body, headers=sent, timeout=quiet) as response:
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    await response.aread()
                    raise self._refusal(response)
                async for kind, text in _events(response.aiter_bytes()):
                    document = self._json(text)
                    if kind == "part":
                        yield document
                    elif kind == "result":
                        yield Answer(document["data"], document.get("meta", {}))
                        return
                    elif kind == "error":
                        raise from_body(document.get("error") or {})
        raise Unavailable(
            f"the gateway at {self._url} closed the connection before its answer was complete", reason="NO_GATEWAY"
        )

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
            raise self._not_a_gateway(response) from None

    def _json(self, text: bytes) -> dict[str, Any]:
        try:
            return _decode(text, type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise Unavailable(
                f"{self._url} sent an answer that is not from an AIMA gateway", reason="NO_GATEWAY"
            ) from error

    def _refusal(self, response: httpx2.Response) -> Exception:
        try:
            document = _decode(response.content, type=dict[str, Any])["error"]
            return self._wrong_root(document) or from_body(document)
        except (msgspec.MsgspecError, KeyError, AttributeError, TypeError):
            return self._not_a_gateway(response)

    def _wrong_root(self, document: Mapping[str, Any]) -> ValidationFailed | None:
        """Return the error for a URL with a path after the gateway's root, such as /v1; None for other URLs."""
        details = document.get("details") or {}
        details = details.get("details") or details  # an OpenAI error contains AIMA's details inside its own `details`
        url = self._url.rstrip("/")
        root = next((url.removesuffix(below) for below in _BELOW if url.endswith(below)), "")
        if not root or not (details.get("reason") == "NO_SUCH_PATH" or url.endswith(_API)):
            return None
        expected = f"the gateway's root address, {root}"
        return ValidationFailed(
            f"--url {self._url}: expected {expected}", fields=[{"field": "--url", "expected": expected}]
        )

    def _not_a_gateway(self, response: httpx2.Response) -> Unavailable:
        return Unavailable(
            f"the server at {self._url} is not an AIMA gateway: status {response.status_code}",
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


async def _events(blocks: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the type and the data of each server-sent event; skip events without data, such as comments."""
    splitter = Splitter()
    async for block in blocks:
        for event in splitter.feed(block):
            if data := data_of(event):
                yield type_of(event), data
