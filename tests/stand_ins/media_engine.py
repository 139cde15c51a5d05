"""A stand-in for engines of speech, images, video, detection and reranking: enough of OpenAI's and Jina's APIs.

    python media_engine.py --port 8000 --model NAME [--weights PATH]

It needs no model, and only the standard library, so that it starts in a tenth of a second. Every answer is derived from
the request, so that a test can tell which request it belongs to; with weights, a transcription also names their digest.
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
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

OPTIONS = argparse.Namespace()
WEIGHTS = hashlib.sha256()
AUDIO = {"mp3": "audio/mpeg", "wav": "audio/wav", "opus": "audio/ogg"}
BLOCK = 1000
PNG = b"\x89PNG\r\n\x1a\n"
POLLS = 2  # questions about a video until it is ready
VIDEOS: dict[str, dict[str, Any]] = {}
LOCK = threading.Lock()


def wav(data: bytes, rate: int = 1000) -> bytes:
    """Return a WAV file of `rate` bytes per second, with one channel of 8 bits."""
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate, 1, 8)
    return (
        struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE") + head + struct.pack("<4sI", b"data", len(data)) + data
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match self.path.split("/")[1:]:
            case ["health"]:
                self.answer(200, {})
            case ["v1", "audio", "voices"]:
                self.answer(200, {"voices": ["alloy", {"id": "nova", "name": "Nova", "language": "en"}]})
            case ["v1", "videos", ident] if ident in VIDEOS:
                self.answer(200, self.progressed(VIDEOS[ident]))
            case ["v1", "videos", ident, "content"] if ident in VIDEOS:
                self.send(200, "video/mp4", VIDEOS[ident]["content"])
            case _:
                self.refuse(404, "unknown route")

    def do_DELETE(self) -> None:
        """Cancel a video."""
        ident = self.path.rpartition("/")[2]
        if VIDEOS.pop(ident, None) is None:
            return self.refuse(404, "unknown video")
        return self.answer(200, {"id": ident, "deleted": True})

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
            case "/v1/videos":
                self.film(request)
            case "/v1/detect":
                self.detect(request)
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
        """Return a transcript that contains the file's length and digest."""
        audio = fields["file"]
        if audio.startswith(b"noise"):
            return self.refuse(400, "the file is no audio")
        digest = hashlib.sha256(audio).hexdigest()[:16]
        text = f"{fields['filename'].decode()}: {len(audio)} bytes, {digest}"
        if OPTIONS.weights:
            text += f", by {WEIGHTS.hexdigest()}"
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
        """Send audio in blocks: the bytes of the text, repeated many times."""
        kind = AUDIO.get(request.get("response_format", "mp3"))
        if kind is None:
            return self.refuse(400, f"there is no format {request['response_format']}")
        audio = f"{request.get('voice', 'nobody')}: {request['input']}".encode() * BLOCK
        audio = wav(audio) if kind == "audio/wav" else audio
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
        """Return an image whose content is the prompt."""
        image = PNG + f"{request['prompt']}, {request.get('size', 'any size')}".encode()
        said = {"b64_json": base64.b64encode(image).decode()}
        if request.get("response_format") == "url":
            said = {"url": f"http://{self.headers['Host']}/{hashlib.sha256(image).hexdigest()}.png"}
        self.answer(200, {"created": 1_700_000_000, "data": [said] * int(request.get("n") or 1)})

    def film(self, request: dict[str, Any]) -> None:
        """Start a video whose content is the prompt."""
        if request["prompt"] == "nothing":
            return self.refuse(400, "the prompt is empty")
        with LOCK:
            ident = f"video-{len(request['prompt'])}"
            content = b"\x00\x00\x00\x18ftypisom" + f"{request['prompt']}, {request.get('size', 'any size')}".encode()
            VIDEOS[ident] = {
                "polls": 0,
                "content": content,
                "fails": request["prompt"] == "a failure",
                "seconds": request.get("seconds", "4"),
            }
        return self.answer(200, {"id": ident, "object": "video", "status": "queued", "progress": 0})

    def progressed(self, video: dict[str, Any]) -> dict[str, Any]:
        """Return a video's status, one step further at each request."""
        video["polls"] += 1
        ready = video["polls"] >= POLLS
        status = ("failed" if video["fails"] else "completed") if ready else "in_progress"
        error = {"code": "broken", "message": "the film is torn"} if status == "failed" else None
        return {
            "id": self.path.rpartition("/")[2],
            "object": "video",
            "status": status,
            "progress": 100 * video["polls"] // POLLS,
            "seconds": video["seconds"],
            "error": error,
        }

    def detect(self, request: dict[str, Any]) -> None:
        """Return one object; the width of its box is the number of the image's bytes."""
        size = float(len(base64.b64decode(request["image"])))
        self.answer(200, {"detections": [{"label": "thing", "confidence": 0.5, "box": [0.0, 0.0, size, 1.0]}]})

    def rerank(self, request: dict[str, Any]) -> None:
        """Return a score for every document, unsorted: the share of the query's words in the document."""
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
    parser.add_argument("--weights", type=Path)
    parser.parse_args(namespace=OPTIONS)
    if weights := OPTIONS.weights:
        for file in sorted(weights.iterdir()) if weights.is_dir() else [weights]:
            WEIGHTS.update(file.read_bytes())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Server((OPTIONS.host, OPTIONS.port), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
