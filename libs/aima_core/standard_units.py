"""The units that the core gives every domain: `<domain>.log` and `<domain>.read`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aima_core.errors import NotFound
from aima_core.units import LARGEST, Query, Risk, View


class LogPage(View):
    """A page of a domain's log."""

    log: str = Field(description="Id of the log; another id means another log, begun anew.")
    position: int = Field(description="Position of the newest event in the log; 0 when it is empty.")
    events: list[dict[str, Any]] = Field(description="Events in order, each with envelope and data.")


class Read(View):
    """What stands at an address."""

    uri: str
    data: dict[str, Any]


class LogQuery(Query[LogPage]):
    """Return the domain's events in order, behind a position."""

    after: int = Field(0, ge=0, le=LARGEST, description="Position behind which to begin.")
    limit: int = Field(100, ge=1, le=1000, description="At most so many events.")
    stream: str | None = Field(None, description="Only events of this stream, such as service/svc-1.")


class ReadQuery(Query[Read]):
    """Read one of the domain's resources by its address."""

    uri: str = Field(description="The address.", max_length=500)


def units_of(domain: str, example_uri: str, log_risk: Risk = "low") -> tuple[type[LogQuery], type[ReadQuery]]:
    """Return the two units under a domain's name."""

    class Log(LogQuery, unit=f"{domain}.log", risk=log_risk, examples=({"after": 0, "limit": 10},)):
        __doc__ = LogQuery.__doc__

    class ReadResource(ReadQuery, unit=f"{domain}.read", errors=(NotFound,), examples=({"uri": example_uri},)):
        __doc__ = ReadQuery.__doc__

    return Log, ReadResource
