"""Performs one pull: downloads the files, checks them, moves them to their final folder and records the progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from aima_core.errors import AimaError, InternalError, RateLimited, Timeout, Unavailable
from aima_core.structured_logs import logger
from aima_core.units import Command
from services.model import internal as i
from services.model import units as u
from services.model.files import model_folders
from services.model.files.checksum import measured
from services.model.files.declared import check_declared
from services.model.files.inspection import facts_of
from services.model.files.opaque import opaque_model
from services.model.files.threads import in_thread
from services.model.headers.formats import inspect, loadable
from services.model.rules import model_names
from services.model.rules.state import Pull
from services.model.settings import ModelSettings
from services.model.sources import SOURCES, Pulled, others

_FIRST_RETRY = 1.0  # seconds; doubled after each attempt
_LONGEST_RETRY = 60.0  # seconds, also if a hub asks for more
_PROGRESS_INTERVAL = 2.0  # seconds between two progress events of one pull ...
_PROGRESS_STEP = 5.0  # ... or percent

_ELSEWHERE = ("REPO_NOT_FOUND", "GATED", "HUB_UNREACHABLE", "RATE_LIMITED")  # reasons to try another source

Record = Callable[[Command[Any]], Awaitable[object]]


async def pull(
    root: Path, effect: Pull, settings: ModelSettings, record: Record
) -> i.RecordPulled | i.RecordPullFailed:
    """Pull a model into its final folder and return the result as a command.

    A failed pull removes the downloaded files. A cancelled pull keeps them, and the next call resumes it.
    """
    remaining = effect.started_at + settings.pull_timeout - time.time()
    try:
        async with asyncio.timeout(max(remaining, 0.0)):
            arrived = await in_thread(model_folders.arrived, root, effect.model_id, effect.run)
            if arrived is None:
                arrived = await _fetch(root, effect, settings.pull_attempts, PullSteps(effect, record))
                await in_thread(model_folders.keep, root, effect.model_id, arrived)
    except TimeoutError:
        timeout = Timeout(
            f"the pull of {effect.repo} did not finish within {settings.pull_timeout:g} s; "
            "pull it again, or raise the setting model.pull_timeout",
            reason="PULL_TIMEOUT",
        )
        return await _failed(root, effect, timeout)
    except AimaError as refusal:
        return await _failed(root, effect, refusal)
    except Exception:
        logger.error("a pull failed with an unexpected error", model_id=effect.model_id, exc_info=True)
        return await _failed(root, effect, InternalError("internal error"))
    return i.RecordPulled(
        model_id=effect.model_id,
        run=effect.run,
        name=arrived.name,
        type=arrived.type,
        format=arrived.format,
        path=str(model_folders.final_folder(root, effect.model_id) / arrived.path),
        size=arrived.size,
        checksum=arrived.checksum,
        facts=arrived.facts,
        digests=arrived.digests,
    )


async def _fetch(root: Path, effect: Pull, attempts: int, steps: PullSteps) -> model_folders.ArrivedFiles:
    folder = await in_thread(model_folders.begin, root, effect.model_id)
    delay = _FIRST_RETRY
    while True:
        try:
            source, format_ = SOURCES[effect.source], effect.format or None
            pulled = await source.pull(effect.repo, effect.tag, folder, steps, effect.mirror, format_)
            break
        except (Unavailable, RateLimited) as refusal:
            attempts -= 1
            if attempts <= 0:
                raise
            pause = min(float(refusal.details.get("retry_after", delay)), _LONGEST_RETRY)
            logger.warning("a pull was interrupted; trying again", model_id=effect.model_id, error=refusal.message)
            await asyncio.sleep(pause)
            delay *= 2
    await steps.checking()
    return await in_thread(_describe, pulled, folder, effect)


def _describe(pulled: Pulled, folder: Path, effect: Pull) -> model_folders.ArrivedFiles:
    if effect.format and u.is_opaque(effect.format):
        path, name = pulled.path, ""  # no header names the model
        file = opaque_model(path, effect.format, cast(u.ModelType, effect.type))
    else:
        path = loadable(pulled.path)
        file = inspect(path)
        check_declared("format", effect.format or None, file.format)
        check_declared("type", effect.type or None, file.type)
        # the author of a package names the file for its users; the name in the header is the trainer's
        name = model_names.tidy(path.stem if effect.source == "package" else file.name)
    # a source has measured the whole download; the loadable part may be only a file of it
    sums = pulled.sums if path == pulled.path else measured(path)
    return model_folders.ArrivedFiles(
        run=effect.run,
        name=name,
        type=effect.type or file.type,
        format=file.format,
        path=path.relative_to(folder).as_posix(),
        size=file.size,
        checksum=sums.checksum,
        digests=sums.digests,
        facts=facts_of(file) | ({"license": pulled.license} if pulled.license else {}),
    )


async def _failed(root: Path, effect: Pull, error: AimaError) -> i.RecordPullFailed:
    try:
        await in_thread(model_folders.discard_pull, root, effect.model_id)
    except AimaError as refusal:
        logger.error("cannot remove the files of a failed pull", model_id=effect.model_id, error=refusal.message)
    message, details = error.message, {**error.details, "model_id": effect.model_id}
    if error.reason in _ELSEWHERE and (sources := others(effect.source, effect.repo, effect.format or None)):
        message += f"; another source may have it: {' or '.join(f'source={source}' for source in sources)}"
        details["sources"] = sources
    return i.RecordPullFailed(
        model_id=effect.model_id,
        run=effect.run,
        error=message,
        error_code=error.reason,
        code=error.code,
        details=details,
    )


class PullSteps:
    """Records the progress of a pull, after every two seconds or five percent. It is a `sources.Progress`."""

    def __init__(self, effect: Pull, record: Record) -> None:
        self._effect = effect
        self._record = record
        self._first: tuple[float, int] | None = None  # time and bytes at the first call
        self._recorded = (float("-inf"), float("-inf"))  # time and percent of the last event
        self._bytes: tuple[int, int | None] = (0, None)  # so far, in total

    async def __call__(self, done: int, total: int | None) -> None:
        now, percent = time.monotonic(), 100 * done / total if total else 0.0
        self._first = self._first or (now, done)  # bytes that an earlier process fetched do not count for the speed
        self._bytes = (done, total)
        if now - self._recorded[0] >= _PROGRESS_INTERVAL or percent - self._recorded[1] >= _PROGRESS_STEP:
            self._recorded = (now, percent)
            await self._record_status("downloading", now)

    async def checking(self) -> None:
        """Record that the download is complete and its files are being checked."""
        await self._record_status("checking", time.monotonic())

    async def _record_status(self, status: str, now: float) -> None:
        done, total = self._bytes
        started_at, before = self._first or (now, done)
        command = i.RecordProgress(
            model_id=self._effect.model_id,
            run=self._effect.run,
            status=status,
            bytes_done=done,
            bytes_total=total,
            speed=round((done - before) / (now - started_at), 1) if now > started_at else 0.0,
        )
        try:
            await self._record(command)
        except AimaError as refusal:  # a download does not end because the log cannot be written; its result is retried
            logger.warning(
                "cannot record the progress of a pull", model_id=self._effect.model_id, error=refusal.message
            )
