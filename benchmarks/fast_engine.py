"""A stand-in engine whose own work is next to nothing: chat completions, whole and streamed, as an OpenAI server does.

`python -m benchmarks.fast_engine --port N [--host H] [--model NAME]`. A request says how it is answered with fields
that every proxy passes on: `max_tokens` is how many tokens, `seed` how many a second in each stream (0: as fast as
they can be read). Connections are kept unless the request closes them.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from functools import lru_cache
from typing import cast

import httptools
import msgspec
import uvloop

_BACKLOG = 2048
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n"
_STREAM = _HEAD % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n"
_CHUNK = b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1767268800,"model":"%b","choices":[%b]%b}'
_SAID = b'{"index":0,"delta":{"role":"assistant","content":" token"},"finish_reason":null}'
_STOP = b'{"index":0,"delta":{},"finish_reason":"stop"}'
_WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1767268800,"model":"%b","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"}]%b}'
)


class _Asked(msgspec.Struct):
    stream: bool = False
    max_tokens: int = 8
    seed: int = 0


_decode = msgspec.json.Decoder(_Asked).decode


class Connection(asyncio.Protocol):
    """A client's connection; answers its requests one after another."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.Handle | None = None
        self._paused = False
        self._url = self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's derive from nothing

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Stop talking."""
        if self._timer:
            self._timer.cancel()
        self._transport = None

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False

    def on_message_begin(self) -> None:
        """Forget the request before."""
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        """Keep the path."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Keep the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer."""
        if self._url == b"/v1/chat/completions":
            asked = _decode(self._body)
            if asked.stream:
                self._write(_STREAM)
                self._say(asked.max_tokens, asked.max_tokens, asked.seed, self._loop.time())
            else:
                self._answer(_whole(self._model, asked.max_tokens))
        elif self._url == b"/v1/models":
            self._answer(b'{"object":"list","data":[{"id":"%b","object":"model","owned_by":"aima"}]}' % self._model)
        else:
            self._answer(b'{"status":"ok"}')

    def _say(self, left: int, of: int, pace: int, due: float) -> None:
        """Say a token, or the end, and see that the rest follows."""
        if not left:
            self._write(_ending(self._model, of))
            self._done()
            return
        if not self._paused:
            self._write(_token(self._model))
            left -= 1
        if pace:
            due += 1 / pace
            self._timer = self._loop.call_at(due, self._say, left, of, pace, due)
        else:
            self._timer = self._loop.call_soon(self._say, left, of, pace, due)

    def _answer(self, body: bytes) -> None:
        self._write(_HEAD % b"application/json" + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._done()

    def _done(self) -> None:
        if self._transport and not self._parser.should_keep_alive():
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)


def _usage(tokens: int) -> bytes:
    return b',"usage":{"prompt_tokens":4,"completion_tokens":%d,"total_tokens":%d}' % (tokens, tokens + 4)


def _event(data: bytes) -> bytes:
    line = b"data: %b\n\n" % data
    return b"%x\r\n%b\r\n" % (len(line), line)


@lru_cache
def _whole(model: bytes, tokens: int) -> bytes:
    return _WHOLE % (model, b" token" * tokens, _usage(tokens))


@lru_cache
def _token(model: bytes) -> bytes:
    return _event(_CHUNK % (model, _SAID, b""))


@lru_cache
def _ending(model: bytes, tokens: int) -> bytes:
    last, usage = _CHUNK % (model, _STOP, b""), _CHUNK % (model, b"", _usage(tokens))
    return _event(last) + _event(usage) + _event(b"[DONE]") + b"0\r\n\r\n"


async def main(host: str, port: int, model: str) -> None:
    """Serve until SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await loop.create_server(lambda: Connection(model.encode()), host, port, backlog=_BACKLOG)
    await stop.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="stand-in")
    given = parser.parse_args()
    uvloop.run(main(given.host, given.port, given.model))
