"""A stand-in for engines of speech, images and reranking: speaks enough of OpenAI's and Jina's APIs, needs no model.

    python media_engine.py --port 8000 --model NAME

Only the standard library, so that it starts in a tenth of a second. Every answer is derived from the request, so
that a test can tell which request it belongs to.
"""

from __future__ import annotations

import argparse
import base64
import email.parser
import email.policy
import hashlib
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPTIONS = argparse.Namespace()
AUDIO = {"mp3": "audio/mpeg", "wav": "audio/wav", "opus": "audio/ogg"}
BLOCK = 1000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, {}) if self.path == "/health" else self.refuse(404, "unknown route")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
            fields = self.form(body)
            if self.known(fields.get("model", b"").decode()):
                self.transcribe(fields)
            return
        request = json.loads(body)
        if not self.known(request.get("model")):
            return
        match self.path:
            case "/v1/audio/speech":
                self.speak(request)
            case "/v1/images/generations":
                self.imagine(request)
            case "/v1/rerank":
                self.rerank(request)
            case _:
                self.refuse(404, "unknown route")

    def known(self, model: str | None) -> bool:
        if model != OPTIONS.model:
            self.refuse(404, f"the model {model} does not exist")
        return model == OPTIONS.model

    def form(self, body: bytes) -> dict[str, bytes]:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        fields: dict[str, bytes] = {}
        for part in message.iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            fields[name] = part.get_payload(decode=True)  # type: ignore[assignment]  # the parts are leaves
            if filename := part.get_filename():
                fields["filename"] = filename.encode()
        return fields

    def transcribe(self, fields: dict[str, bytes]) -> None:
        """Write down how long the file is, and its digest."""
        audio = fields["file"]
        if audio.startswith(b"noise"):
            return self.refuse(400, "the file is no audio")
        digest = hashlib.sha256(audio).hexdigest()[:16]
        text = f"{fields['filename'].decode()}: {len(audio)} bytes, {digest}"
        if self.path.endswith("translations"):
            text = f"in English, {text}"
        match fields.get("response_format", b"json").decode():
            case "json":
                return self.answer(200, {"text": text, "usage": {"type": "duration", "seconds": 2}})
            case "verbose_json":
                language = fields.get("language", b"en").decode()
                segment = {"id": 0, "start": 0.0, "end": 2.0, "text": text}
                return self.answer(
                    200,
                    {"task": "transcribe", "language": language, "duration": 2.0, "text": text, "segments": [segment]},
                )
            case "srt":
                said = f"1\n00:00:00,000 --> 00:00:02,000\n{text}\n\n"
            case "vtt":
                said = f"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n{text}\n\n"
            case _:
                said = text
        return self.send(200, "text/plain; charset=utf-8", said.encode())

    def speak(self, request: dict[str, Any]) -> None:
        """Say the text: its bytes, many times over, in blocks."""
        kind = AUDIO.get(request.get("response_format", "mp3"))
        if kind is None:
            return self.refuse(400, f"there is no format {request['response_format']}")
        audio = f"{request.get('voice', 'nobody')}: {request['input']}".encode() * BLOCK
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(audio), BLOCK):
            block = audio[start : start + BLOCK]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
        self.wfile.write(b"0\r\n\r\n")
        return None

    def imagine(self, request: dict[str, Any]) -> None:
        """Paint the description: the image is its text."""
        image = f"{request['prompt']}, {request.get('size', 'any size')}".encode()
        said = {"b64_json": base64.b64encode(image).decode()}
        if request.get("response_format") == "url":
            said = {"url": f"http://{self.headers['Host']}/{hashlib.sha256(image).hexdigest()}.png"}
        self.answer(200, {"created": 1_700_000_000, "data": [said] * int(request.get("n") or 1)})

    def rerank(self, request: dict[str, Any]) -> None:
        """Score by the share of the query's words; in the order of the documents, and all of them."""
        words = set(request["query"].lower().split())
        results = [
            {"index": index, "relevance_score": len(words & set(text.lower().split())) / len(words)}
            for index, text in enumerate(request["documents"])
        ]
        used = sum(len(text.split()) for text in request["documents"])
        self.answer(200, {"results": results, "usage": {"prompt_tokens": used, "total_tokens": used}})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, kind: str, payload: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def refuse(self, status: int, message: str) -> None:
        self.answer(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

    def log_message(self, *_: object) -> None:
        sys.stderr.write(f"{self.command} {self.path}\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.parse_args(namespace=OPTIONS)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Server((OPTIONS.host, OPTIONS.port), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
