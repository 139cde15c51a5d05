"""A stand-in for an engine: serves a part of OpenAI's API without a model, and fails when a request says so.

    python engine.py --port 8000 --model NAME [--delay-start 2] [--die-after 5] [--fail-with MESSAGE] [--hold-mib 9] ...

Only the standard library, so that it starts in a tenth of a second. Every answer is derived from the request, so
that a test can tell which request it belongs to.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

OPTIONS = argparse.Namespace()
CREATED = 1_700_000_000
ABORT = "abort"  # a request with this text ends the process
HELD: list[mmap.mmap] = []
LOOKS: list[str] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            look = len(LOOKS)
            LOOKS.append(OPTIONS.health[look : look + 1])
            self.answer(503 if LOOKS[look] == "-" else 200, {"looks": look + 1})
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": OPTIONS.model, "object": "model", "owned_by": "aima"}]})
        else:
            self.refuse(404, "unknown route")

    def do_POST(self) -> None:
        try:
            request = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        except ValueError:
            return self.refuse(400, "not JSON")
        time.sleep(OPTIONS.sleep_per_request)
        if request.get("model") not in (None, OPTIONS.model):
            return self.refuse(404, f"the model {request['model']} does not exist")
        match self.path:
            case "/hold":
                hold(int(request["mib"]))
                return self.answer(200, {})
            case "/v1/chat/completions":
                turn = request.get("messages", [{}])[-1]
                asked = said(turn.get("content", ""))
                if asked == ABORT:
                    os.abort()
                if request.get("tools") and turn.get("role") != "tool" and request.get("tool_choice") != "none":
                    return self.call(request, asked)
                return self.complete(request, asked, "chat.completion")
            case "/v1/completions":
                return self.complete(request, str(request.get("prompt", "")), "text_completion")
            case "/v1/embeddings":
                given = request.get("input", [])
                texts = [given] if isinstance(given, str) else given
                data = [
                    {"object": "embedding", "index": index, "embedding": [float(len(text)), float(index), 1.0]}
                    for index, text in enumerate(texts)
                ]
                used = sum(len(text.split()) for text in texts)
                usage = {"prompt_tokens": used, "total_tokens": used}
                return self.answer(200, {"object": "list", "model": OPTIONS.model, "data": data, "usage": usage})
        return self.refuse(404, "unknown route")

    def complete(self, request: dict[str, Any], asked: str, kind: str) -> None:
        limit = min(OPTIONS.tokens, int(request.get("max_tokens") or OPTIONS.tokens))
        words = (["echo:", *asked.split()] * OPTIONS.tokens)[:limit]
        usage = {"prompt_tokens": len(asked.split()), "completion_tokens": limit}
        usage["total_tokens"] = sum(usage.values())
        head = {"id": f"cmpl-{os.getpid()}", "created": CREATED, "model": OPTIONS.model}
        chat = kind == "chat.completion"
        if not request.get("stream"):
            time.sleep(OPTIONS.token_delay * limit)
            text = " ".join(words)
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice = {"index": 0, "finish_reason": "stop", **said}
            return self.answer(200, {**head, "object": kind, "choices": [choice], "usage": usage})
        self.begin_stream()
        head["object"] = f"{kind}.chunk" if chat else kind
        for number, word in enumerate(words):
            time.sleep(OPTIONS.token_delay)
            text = word if number == 0 else f" {word}"
            said = {"delta": {"content": text}} if chat else {"text": text}
            self.part({**head, "choices": [{"index": 0, "finish_reason": None, **said}]})
        nothing: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        last = {"index": 0, "finish_reason": "stop", **nothing}
        self.part({**head, "choices": [last]})
        if (request.get("stream_options") or {}).get("include_usage"):
            self.part({**head, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def call(self, request: dict[str, Any], asked: str) -> None:
        """Return a call of the chosen tool, or else the first tool, with the request's text as argument."""
        choice = request.get("tool_choice")
        chosen = choice["function"]["name"] if isinstance(choice, dict) else request["tools"][0]["function"]["name"]
        arguments = json.dumps({"asked": asked})
        usage = {"prompt_tokens": len(asked.split()), "completion_tokens": 2}
        head = {"id": f"cmpl-{os.getpid()}", "created": CREATED, "model": OPTIONS.model}
        begun = {"index": 0, "id": "call-1", "type": "function", "function": {"name": chosen, "arguments": ""}}
        if not request.get("stream"):
            call = begun | {"function": {"name": chosen, "arguments": arguments}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choices = [{"index": 0, "finish_reason": "tool_calls", "message": message}]
            return self.answer(200, {**head, "object": "chat.completion", "choices": choices, "usage": usage})
        self.begin_stream()
        head["object"] = "chat.completion.chunk"
        middle = len(arguments) // 2
        for piece in (
            begun,
            *({"index": 0, "function": {"arguments": a}} for a in (arguments[:middle], arguments[middle:])),
        ):
            self.part({**head, "choices": [{"index": 0, "finish_reason": None, "delta": {"tool_calls": [piece]}}]})
        self.part({**head, "choices": [{"index": 0, "finish_reason": "tool_calls", "delta": {}}]})
        self.part({**head, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")
        return None

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def part(self, body: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        self.wfile.flush()

    def answer(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):  # the client went away: no reason for a traceback
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        sys.stderr.write(f"{self.command} {self.path}\n")


def said(content: Any) -> str:
    """Return the text of a message; an image appears as its media type."""
    if not isinstance(content, list):
        return str(content)
    return " ".join(part["text"] if "text" in part else part["image_url"]["url"].partition(",")[0] for part in content)


def hold(mib: int) -> None:
    """Release the memory that is held, then hold `mib` MiB."""
    while HELD:
        HELD.pop().close()
    if mib:
        held = mmap.mmap(-1, mib * 2**20)
        for _ in range(mib):
            held.write(b"\1" * 2**20)
        HELD.append(held)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class OneThreadServer(HTTPServer):
    """Answers no health check while it works."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="stand-in")
    parser.add_argument("--delay-start", type=float, default=0.0, help="seconds until it listens")
    parser.add_argument("--die-after", type=float, help="seconds until it exits with code 9")
    parser.add_argument("--fail-with", metavar="MESSAGE", help="print it and exit with code 1, after the delay")
    parser.add_argument("--sleep-per-request", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--one-thread", type=int, default=0, help="1: work on one connection at a time")
    parser.add_argument("--token-delay", type=float, default=0.0, help="seconds before each token")
    parser.add_argument("--tokens", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--hold-mib", type=int, default=0, help="memory to hold; POST /hold changes it")
    parser.add_argument("--health", default="", help="such as +--+: how the first looks go; the later ones are well")
    parser.parse_args(namespace=OPTIONS)
    hold(OPTIONS.hold_mib)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if OPTIONS.die_after is not None:
        timer = threading.Timer(OPTIONS.die_after, lambda: os._exit(9))
        timer.daemon = True
        timer.start()
    time.sleep(OPTIONS.delay_start)
    if OPTIONS.fail_with is not None:
        sys.stderr.write(OPTIONS.fail_with + "\n")
        return 1
    server = (OneThreadServer if OPTIONS.one_thread else Server)((OPTIONS.host, OPTIONS.port), Handler)
    sys.stderr.write(f"listening on {OPTIONS.host}:{server.server_port}\n")
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
