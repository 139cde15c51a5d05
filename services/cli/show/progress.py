"""A progress bar on stderr, for a call that takes longer than a second."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SILENT = 1.0  # seconds until the bar appears, if the call reports no progress before


class ProgressBar:
    """A bar that appears after one second, or at the first progress report. Imports rich only when it appears."""

    def __init__(self, title: str, *, hidden: bool) -> None:
        self._title = title
        self._hidden = hidden
        self._drawn: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> ProgressBar:
        self._timer = asyncio.get_running_loop().call_later(_SILENT, self._draw)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._timer.cancel()
        if self._drawn:
            self._drawn[0].stop()

    def update(self, description: str, percent: float) -> None:
        """Show the progress of the call."""
        if drawn := self._draw():
            progress, task = drawn
            progress.update(task, description=description, completed=percent, total=100)

    def _draw(self) -> tuple[Progress, TaskID] | None:
        if not self._hidden and not self._drawn:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
            )
            progress = Progress(*columns, console=Console(stderr=True, soft_wrap=True), transient=True)
            progress.start()
            self._drawn = progress, progress.add_task(self._title, total=None)
        return self._drawn
