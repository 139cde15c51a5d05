"""The errors that a caller can act on, and how they travel.

The tree, with the code on the wire and the HTTP status that a gateway maps it to:

    AimaError
    ├── InvalidRequest          INVALID_REQUEST         400   not decodable, wrong envelope
    │   └── ValidationFailed    VALIDATION_ERROR        400   the unit's schema refuses the input
    ├── Unauthorized            UNAUTHORIZED            401
    ├── Forbidden               FORBIDDEN               403
    ├── NotFound                NOT_FOUND               404
    │   └── UnitNotFound        UNIT_NOT_FOUND          404
    ├── Conflict                CONFLICT                409   it cannot be, given what is
    ├── PayloadTooLarge         PAYLOAD_TOO_LARGE       413
    ├── RateLimited             RATE_LIMITED            429
    ├── ExecutionFailed         EXECUTION_FAILED        500   the world outside refused
    ├── InternalError           INTERNAL_ERROR          500   a bug of ours; never shows what broke inside
    ├── Unavailable             UNAVAILABLE             503   a process, a server or a hub does not answer
    │   ├── InsufficientResources  INSUFFICIENT_RESOURCES  503
    │   └── EngineNotRunning    ENGINE_NOT_RUNNING      503
    └── Timeout                 TIMEOUT                 504

The code is from this closed list. What exactly is wrong stands in `details.reason`
(`MODEL_NOT_FOUND`, `VERSION_CONFLICT`, `PORT_IN_USE`, ...), beside whatever a program needs to go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class AimaError(Exception):
    """A declared refusal: `message` for a person, `details` for a program."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500

    def __init__(self, message: str, /, reason: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = {"reason": reason, **details} if reason else details

    @property
    def reason(self) -> str:
        """The most exact code there is: `details.reason`, or the code itself."""
        return str(self.details.get("reason", self.code))

    def body(self) -> dict[str, Any]:
        """Return the error as it stands in a reply envelope."""
        return {"code": self.code, "message": self.message, "details": self.details}


class InvalidRequest(AimaError):
    """The request cannot be decoded."""

    code, status = "INVALID_REQUEST", 400


class ValidationFailed(InvalidRequest):
    """The input is not what the unit's schema asks for; `details.fields` names each fault."""

    code = "VALIDATION_ERROR"


class Unauthorized(AimaError):
    """Nobody is known to be asking."""

    code, status = "UNAUTHORIZED", 401


class Forbidden(AimaError):
    """Who asks may not."""

    code, status = "FORBIDDEN", 403


class NotFound(AimaError):
    """What the request names is not there."""

    code, status = "NOT_FOUND", 404


class UnitNotFound(NotFound):
    """No domain on the bus answers to that unit."""

    code = "UNIT_NOT_FOUND"


class Conflict(AimaError):
    """The request cannot be met, given what is."""

    code, status = "CONFLICT", 409


class PayloadTooLarge(AimaError):
    """The message is larger than a domain accepts."""

    code, status = "PAYLOAD_TOO_LARGE", 413


class RateLimited(AimaError):
    """Too many requests; `details.retry_after` in seconds."""

    code, status = "RATE_LIMITED", 429


class ExecutionFailed(AimaError):
    """The world outside did not do what was asked of it."""

    code, status = "EXECUTION_FAILED", 500


class InternalError(AimaError):
    """A bug of ours. The log has the traceback under the request id."""

    code, status = "INTERNAL_ERROR", 500


class Unavailable(AimaError):
    """Something that the request needs does not answer right now; asking again later may help."""

    code, status = "UNAVAILABLE", 503


class InsufficientResources(Unavailable):
    """There is not enough memory or accelerator; the details say how much is missing and who holds it."""

    code = "INSUFFICIENT_RESOURCES"


class EngineNotRunning(Unavailable):
    """No healthy engine serves the model."""

    code = "ENGINE_NOT_RUNNING"


class Timeout(AimaError):
    """The deadline of the request has passed."""

    code, status = "TIMEOUT", 504


def _tree(root: type[AimaError]) -> dict[str, type[AimaError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


BY_CODE: Mapping[str, type[AimaError]] = _tree(AimaError) | {"INTERNAL_ERROR": InternalError}


def from_body(body: Mapping[str, Any]) -> AimaError:
    """Return the error that a reply envelope carries; a code of a later release reads as an internal error."""
    error = BY_CODE.get(str(body.get("code")), InternalError)(str(body.get("message", "")))
    error.details = dict(body.get("details") or {})
    return error
