"""Defines all errors that a caller can get.

Each error has a code, which is in the reply, and an HTTP status, which the gateway uses:

    AimaError
    ├── InvalidRequest          INVALID_REQUEST         400   payload not decodable, or invalid header
    │   └── ValidationFailed    VALIDATION_ERROR        400   the input does not match the unit's schema
    ├── Unauthorized            UNAUTHORIZED            401
    ├── Forbidden               FORBIDDEN               403
    ├── NotFound                NOT_FOUND               404
    │   └── UnitNotFound        UNIT_NOT_FOUND          404
    ├── Conflict                CONFLICT                409   not possible in the current state
    ├── PayloadTooLarge         PAYLOAD_TOO_LARGE       413
    ├── RateLimited             RATE_LIMITED            429
    ├── ExecutionFailed         EXECUTION_FAILED        500   something outside AIMA failed: a download, an engine
    ├── InternalError           INTERNAL_ERROR          500   a bug in AIMA; the reply shows no internals
    ├── Unavailable             UNAVAILABLE             503   a process, a server or a hub does not answer
    │   ├── InsufficientResources  INSUFFICIENT_RESOURCES  503
    │   └── EngineNotRunning    ENGINE_NOT_RUNNING      503
    └── Timeout                 TIMEOUT                 504

No other codes exist. `details.reason` holds the exact cause (`MODEL_NOT_FOUND`, `VERSION_CONFLICT`, `PORT_IN_USE`,
...), and the other details hold the data that a program needs to react.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class AimaError(Exception):
    """An error that a caller gets as a reply. `message` is for people, and `details` is for programs."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500

    def __init__(self, message: str, /, reason: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = {"reason": reason, **details} if reason else details

    @property
    def reason(self) -> str:
        """The exact cause in `details.reason`, or the code if the details have no reason."""
        return str(self.details.get("reason", self.code))

    def body(self) -> dict[str, Any]:
        """Return the `error` field of a reply envelope."""
        return {"code": self.code, "message": self.message, "details": self.details}


class InvalidRequest(AimaError):
    """The request cannot be decoded."""

    code, status = "INVALID_REQUEST", 400


class ValidationFailed(InvalidRequest):
    """The input does not match the unit's schema. `details.fields` lists each invalid field."""

    code = "VALIDATION_ERROR"


class Unauthorized(AimaError):
    """The caller's key or password is missing or wrong."""

    code, status = "UNAUTHORIZED", 401


class Forbidden(AimaError):
    """The caller has no right to send the request."""

    code, status = "FORBIDDEN", 403


class NotFound(AimaError):
    """The thing that the request names does not exist."""

    code, status = "NOT_FOUND", 404


class UnitNotFound(NotFound):
    """No domain on the bus serves the unit."""

    code = "UNIT_NOT_FOUND"


class Conflict(AimaError):
    """The current state does not allow the request."""

    code, status = "CONFLICT", 409


class PayloadTooLarge(AimaError):
    """The message is larger than a domain accepts."""

    code, status = "PAYLOAD_TOO_LARGE", 413


class RateLimited(AimaError):
    """The caller sends too many requests. `details.retry_after` is the number of seconds until a retry."""

    code, status = "RATE_LIMITED", 429


class ExecutionFailed(AimaError):
    """Something outside AIMA failed: a download, an engine, the operating system."""

    code, status = "EXECUTION_FAILED", 500


class InternalError(AimaError):
    """A bug in AIMA. The domain's process log has the traceback under the request id."""

    code, status = "INTERNAL_ERROR", 500


class Unavailable(AimaError):
    """A process, a server or a hub that the request needs does not answer now. A later retry may succeed."""

    code, status = "UNAVAILABLE", 503


class InsufficientResources(Unavailable):
    """Not enough memory or accelerators are free. The details have the missing amount and the current holders."""

    code = "INSUFFICIENT_RESOURCES"


class EngineNotRunning(Unavailable):
    """No healthy engine serves the model."""

    code = "ENGINE_NOT_RUNNING"


class Timeout(AimaError):
    """The request's deadline has passed."""

    code, status = "TIMEOUT", 504


_SILENT = frozenset({"DOMAIN_DOWN", "NO_NATS", "STOPPING"})  # reasons of the bus itself: no process has answered


def is_silence(error: AimaError) -> bool:
    """Whether no process has answered a request. Only then is it right to repeat the request and wait.

    Any other error is an answer with a reason, such as a lack of ports or of memory. Waiting does not change it.
    """
    return isinstance(error, Timeout) or (isinstance(error, Unavailable) and error.reason in _SILENT)


def _tree(root: type[AimaError]) -> dict[str, type[AimaError]]:
    by_code = {root.code: root}
    for child in root.__subclasses__():
        by_code |= _tree(child)
    return by_code


BY_CODE: Mapping[str, type[AimaError]] = _tree(AimaError) | {"INTERNAL_ERROR": InternalError}


def from_body(body: Mapping[str, Any]) -> AimaError:
    """Return the error in a reply envelope. A code that this release does not know becomes an InternalError."""
    error = BY_CODE.get(str(body.get("code")), InternalError)(str(body.get("message", "")))
    error.details = dict(body.get("details") or {})
    return error
