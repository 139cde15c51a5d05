"""Carries one pull through: fetch, check, move, and say how far it has come. What comes of it is a command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aima_core.errors import AimaError, InternalError, RateLimited, Timeout, Unavailable
from aima_core.structured_logs import logger
from aima_core.units import Command
from services.model import internal as i
from services.model.files import model_folders
from services.model.files.checksum import checksum
from services.model.files.inspection import facts_of
from services.model.files.threads import in_thread
from services.model.headers.formats import inspect, loadable
from services.model.rules import model_names
from services.model.rules.state import Pull
from services.model.settings import ModelSettings
from services.model.sources import SOURCES, Pulled

_FIRST_RETRY = 1.0  # seconds; doubled after each attempt
_LONGEST_RETRY = 60.0  # seconds, whatever a hub asks for
_OFTEN = 2.0  # seconds between two events about one pull ...
_STEP = 5.0  # ... or percent

Record = Callable[[Command[Any]], Awaitable[object]]


async def pull(
    root: Path, effect: Pull, settings: ModelSettings, record: Record
) -> i.RecordPulled | i.RecordPullFailed:
    """Have the model where it stays; on failure nothing of it is left. Cancelled, what is there so far is kept."""
    left = effect.started_at + settings.pull_timeout - time.time()
    try:
        async with asyncio.timeout(max(left, 0.0)):
            found = await in_thread(model_folders.arrived, root, effect.model_id, effect.run)
            if found is None:
                found = await _fetch(root, effect, settings.pull_attempts, PullSteps(effect, record))
                await in_thread(model_folders.keep, root, effect.model_id, found)
    except TimeoutError:
        late = Timeout(f"{effect.repo} was not here within {settings.pull_timeout:g} s", reason="PULL_TIMEOUT")
        return await _failed(root, effect, late)
    except AimaError as refusal:
        return await _failed(root, effect, refusal)
    except Exception:
        logger.error("pull broke", model_id=effect.model_id, exc_info=True)
        return await _failed(root, effect, InternalError("internal error"))
    return i.RecordPulled(
        model_id=effect.model_id,
        run=effect.run,
        name=found.name,
        type=found.type,
        format=found.format,
        path=str(model_folders.staying(root, effect.model_id) / found.path),
        size=found.size,
        checksum=found.checksum,
        facts=found.facts,
    )


async def _fetch(root: Path, effect: Pull, attempts: int, steps: PullSteps) -> model_folders.ArrivedFiles:
    folder = await in_thread(model_folders.begin, root, effect.model_id)
    delay = _FIRST_RETRY
    while True:
        try:
            got = await SOURCES[effect.source].pull(effect.repo, effect.tag, folder, steps, effect.mirror)
            break
        except (Unavailable, RateLimited) as refusal:
            attempts -= 1
            if attempts <= 0:
                raise
            wait = min(float(refusal.details.get("retry_after", delay)), _LONGEST_RETRY)
            logger.warning("the hub does not answer; trying again", model_id=effect.model_id, error=refusal.message)
            await asyncio.sleep(wait)
            delay *= 2
    await steps.checking()
    return await in_thread(_look, got, folder, effect)


def _look(got: Pulled, folder: Path, effect: Pull) -> model_folders.ArrivedFiles:
    path = loadable(got.path)
    file = inspect(path)
    return model_folders.ArrivedFiles(
        run=effect.run,
        # who packs weights into a package names the file for people; what its header says is the trainer's own
        name=model_names.tidy(path.stem if effect.source == "package" else file.name),
        type=file.type,
        format=file.format,
        path=path.relative_to(folder).as_posix(),
        size=file.size,
        # the sources have checked what they fetched, and say the digest of all of it
        checksum=got.checksum if path == got.path else checksum(path),
        facts=facts_of(file) | ({"license": got.license} if got.license else {}),
    )


async def _failed(root: Path, effect: Pull, error: AimaError) -> i.RecordPullFailed:
    try:
        await in_thread(model_folders.discard_pull, root, effect.model_id)
    except AimaError as left:
        logger.error("what is left of a pull cannot be removed", model_id=effect.model_id, error=left.message)
    return i.RecordPullFailed(
        model_id=effect.model_id,
        run=effect.run,
        error=error.message,
        error_code=error.reason,
        code=error.code,
        details={**error.details, "model_id": effect.model_id},
    )


class PullSteps:
    """Records how far a pull has come, at most every two seconds or five percent: a `sources.Progress`."""

    def __init__(self, effect: Pull, record: Record) -> None:
        self._effect = effect
        self._record = record
        self._begun: tuple[float, int] | None = None
        self._last = (float("-inf"), float("-inf"))
        self._so_far: tuple[int, int | None] = (0, None)

    async def __call__(self, done: int, total: int | None) -> None:
        """Take in the bytes that are there and that there will be."""
        now, percent = time.monotonic(), 100 * done / total if total else 0.0
        self._begun = self._begun or (now, done)  # what an earlier process fetched says nothing about the speed
        self._so_far = (done, total)
        if now - self._last[0] >= _OFTEN or percent - self._last[1] >= _STEP:
            self._last = (now, percent)
            await self._say("downloading", now)

    async def checking(self) -> None:
        """Say that all of it is here and is being looked at."""
        await self._say("checking", time.monotonic())

    async def _say(self, status: str, now: float) -> None:
        done, total = self._so_far
        begun, before = self._begun or (now, done)
        command = i.RecordProgress(
            model_id=self._effect.model_id,
            run=self._effect.run,
            status=status,
            bytes_done=done,
            bytes_total=total,
            speed=round((done - before) / (now - begun), 1) if now > begun else 0.0,
        )
        try:
            await self._record(command)
        except AimaError as refusal:  # a log that cannot be written ends no download: the outcome is tried for longer
            logger.warning("progress not recorded", model_id=self._effect.model_id, error=refusal.message)
