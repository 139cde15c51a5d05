"""Requests about images and video: images from text, detection in an image, video from text.

Sources: the OpenAI API reference (images, videos). OpenAI has no API for detection: `/v1/detect` is AIMA's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from aima_core.errors import AimaError
from aima_engines.decoding import decoded
from aima_engines.engine_answer import Engine, EngineBody
from aima_engines.engine_errors import bad_answer, empty_answer, engine_failed
from aima_engines.engine_http import EngineGone
from aima_engines.kinds.exchange import Exchange
from aima_engines.kinds.media_formats import base64_of, decoded_base64, format_of
from aima_engines.kinds.request_bodies import json_body

_SIDE = 512  # pixels of the second side if the caller sets only one
VIDEOS = "/v1/videos"
_POLL = 1.0  # seconds between two requests for a video's status
_CANCEL = 2.0  # seconds to wait for an engine's reply when a video is cancelled


class _Image(msgspec.Struct):
    b64_json: str


class _Images(msgspec.Struct):
    data: Annotated[list[_Image], Meta(min_length=1)]


class _Detection(msgspec.Struct):
    label: str
    confidence: float
    box: Annotated[list[float], Meta(min_length=4, max_length=4)]


class _Detections(msgspec.Struct):
    detections: list[_Detection]


class _Video(msgspec.Struct):
    """A video that the engine generates. `progress`: in percent."""

    id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}\Z")]  # the id becomes a part of a URL's path
    status: str
    progress: float | None = None
    seconds: Annotated[float, Meta(ge=0)] | None = None
    error: Any = None


_read_images = msgspec.json.Decoder(_Images).decode
_read_detections = msgspec.json.Decoder(_Detections).decode
_read_video = msgspec.json.Decoder(_Video, strict=False).decode


def image_body(fields: Mapping[str, Any], model: str) -> EngineBody:
    """Return the body that requests images. The answer contains each image as base64 text."""
    return json_body({**_without_sides(fields), **_size(fields), "response_format": "b64_json"}, model)


async def images(exchange: Exchange) -> dict[str, Any]:
    """Return the images in an engine's answer, and their format."""
    answer = decoded(_read_images, await exchange.answer.whole())
    if answer is None:
        raise bad_answer()
    try:
        first, *_ = [decoded_base64(image.b64_json, "b64_json") for image in answer.data]
    except AimaError:
        raise bad_answer() from None
    return {"images": [image.b64_json for image in answer.data], "format": format_of(first)}


async def detections(exchange: Exchange) -> dict[str, Any]:
    """Return the objects that the engine detects in an image."""
    answer = decoded(_read_detections, await exchange.answer.whole())
    if answer is None:
        raise bad_answer()
    objects: dict[str, Any] = msgspec.to_builtins(answer)
    return objects


def detection_body(fields: Mapping[str, Any], model: str) -> EngineBody:
    """Return the body that requests a detection. Raises ValidationFailed if `image` is not base64."""
    return json_body({"image": base64_of(decoded_base64(fields["image"], "image"))}, model)


def video_body(fields: Mapping[str, Any], model: str) -> EngineBody:
    """Return the body that requests a video. In OpenAI's API, the duration is the text field `seconds`."""
    body = {**_without_sides(fields), **_size(fields)}
    if (seconds := body.pop("duration", None)) is not None:
        body["seconds"] = f"{seconds:g}"
    return json_body(body, model)


async def video(exchange: Exchange) -> dict[str, Any]:
    """Wait for a video and return it. Sends the progress, in percent, as parts.

    Cancels the video if the caller leaves or an error occurs.
    """
    engine, job = exchange.engine, _job(await exchange.answer.whole())
    path = f"{VIDEOS}/{job.id}"
    try:
        while job.status in ("queued", "in_progress"):
            await exchange.send({"progress": job.progress or 0.0})
            await asyncio.sleep(_POLL)
            async with engine.ask(path, EngineBody(), method="GET") as answer:
                job = _job(await answer.whole())
        if job.status == "failed":
            raise engine_failed(job.error)
        if job.status != "completed":
            raise bad_answer()
        async with engine.ask(f"{path}/content", EngineBody(), method="GET") as answer:
            data, content_type = await answer.whole(), answer.content_type
    except BaseException:  # also if a poll fails: nobody would fetch the video later
        await _cancel(engine, path)
        raise
    if not data:
        raise empty_answer()
    duration = job.seconds if job.seconds is not None else exchange.fields.get("duration")
    return {"video": base64_of(data), "format": format_of(data, content_type), "duration": duration}


async def _cancel(engine: Engine, path: str) -> None:
    with contextlib.suppress(AimaError, EngineGone, TimeoutError):
        async with asyncio.timeout(_CANCEL), engine.ask(path, EngineBody(), method="DELETE"):
            pass


def _job(body: bytes) -> _Video:
    job = decoded(_read_video, body)
    if job is None:
        raise bad_answer()
    return job


def _without_sides(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in ("width", "height")}


def _size(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return `width` and `height` as the field `size` of OpenAI's API. A side that is missing is 512 pixels.

    Returns no field if both sides are missing.
    """
    width, height = fields.get("width"), fields.get("height")
    return {"size": f"{width or _SIDE}x{height or _SIDE}"} if width or height else {}
