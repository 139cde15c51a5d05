"""A stand-in engine that streams tokens as an OpenAI server does, at a pace or as fast as it can be read.

`python -m benchmarks.engine PORT` serves `/paced/v1/chat/completions` (100 tokens a second in each stream) and
`/fast/v1/chat/completions`; `max_tokens` says how many. A connection for each request.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import msgspec
import uvloop

PACE = 0.01  # seconds between two tokens of a paced stream
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
_TOKEN = (
    b'{"choices":[{"finish_reason":null,"index":0,"delta":{"content":" token"}}],"created":1767268800,'
    b'"id":"chatcmpl-0123456789abcdef0123456789abcdef","model":"stand-in","object":"chat.completion.chunk"}'
)
_LAST = (
    b'{"choices":[{"finish_reason":"length","index":0,"delta":{}}],"created":1767268800,"id":"chatcmpl-0",'
    b'"model":"stand-in","object":"chat.completion.chunk",'
    b'"usage":{"completion_tokens":%d,"prompt_tokens":4,"total_tokens":%d}}'
)


def _event(data: bytes) -> bytes:
    line = b"data: %b\n\n" % data
    return b"%x\r\n%b\r\n" % (len(line), line)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request and close."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        count = msgspec.json.decode(await reader.readexactly(length))["max_tokens"]
        paced = head.startswith(b"POST /paced/")
        token, loop = _event(_TOKEN), asyncio.get_running_loop()
        writer.write(_HEAD)
        due = loop.time()
        for _ in range(count):
            writer.write(token)
            await writer.drain()
            due += PACE
            await asyncio.sleep(max(due - loop.time(), 0) if paced else 0)
        writer.write(_event(_LAST % (count, count + 4)) + _event(b"[DONE]") + b"0\r\n\r\n")
        await writer.drain()
    writer.close()


async def main(port: int) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await asyncio.start_server(answer, "127.0.0.1", port)
    print("ready", flush=True)
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
