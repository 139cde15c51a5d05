"""Writes the log: one JSON object per line on stderr. A log must never contain the content of requests or answers.

logger.info("instance started", process_id="eng-1", port=8100)
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Literal

import msgspec

from aima_core.call import current_call, timestamp, trace_id

Level = Literal["debug", "info", "warning", "error"]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": timestamp(record.created),
            "level": record.levelname.lower(),
            "domain": _domain,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if call := current_call.get():
            line |= {"request_id": call.request_id, "trace_id": trace_id(call.trace)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=repr).decode()


class Logger:
    """The one logger of a process."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: Any) -> None:
        """Log a detail for developers."""
        self._logger.debug(message, extra={"fields": fields})

    def info(self, message: str, **fields: Any) -> None:
        """Log an event that interests the operator."""
        self._logger.info(message, extra={"fields": fields})

    def warning(self, message: str, **fields: Any) -> None:
        """Log a failure that AIMA handles itself."""
        self._logger.warning(message, extra={"fields": fields})

    def error(self, message: str, *, exc_info: bool = False, **fields: Any) -> None:
        """Log a failure that needs attention. `exc_info` adds the traceback of the current exception."""
        self._logger.error(message, exc_info=exc_info, extra={"fields": fields})


logger = Logger("aima")
_domain = ""


def set_up(domain: str, level: Level = "info") -> None:
    """Send this process's log to stderr as JSON lines."""
    global _domain  # noqa: PLW0603 (the process has one name)
    _domain = domain
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    logging.Formatter.converter = time.gmtime
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("aima").setLevel(level.upper())
