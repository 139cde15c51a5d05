"""The two units that every domain has: `<domain>.log` and `<domain>.read`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from aima_core.errors import NotFound
from aima_core.risk import Risk
from aima_core.units import LARGEST, Query, View


class LogPage(View):
    """A page of a domain's log."""

    log: str = Field(description="Id of the log; a different id means that the log was deleted and started again.")
    position: int = Field(description="Position of the newest event in the log; 0 if the log is empty.")
    events: list[dict[str, Any]] = Field(description="Events in order, each with envelope and data.")


class Read(View):
    """The content of a resource."""

    uri: str
    data: dict[str, Any]


class LogQuery(Query[LogPage]):
    """Return the domain's events after a position, oldest first."""

    after: int = Field(0, ge=0, le=LARGEST, description="Return only events after this position.")
    limit: int = Field(100, ge=1, le=1000, description="Maximum number of events to return.")
    stream: str | None = Field(None, description="Return only events of this stream, such as service/svc-1.")


class ReadQuery(Query[Read]):
    """Read one of the domain's resources by its address."""

    uri: str = Field(description="Address of the resource, such as asms://service/svc-1.", max_length=500)


def units_of(domain: str, example_uri: str, log_risk: Risk = "low") -> tuple[type[LogQuery], type[ReadQuery]]:
    """Return the units `log` and `read` of a domain. `example_uri` is an address that the documentation shows."""

    class Log(LogQuery, unit=f"{domain}.log", risk=log_risk, examples=({"after": 0, "limit": 10},)):
        __doc__ = LogQuery.__doc__

    class ReadResource(ReadQuery, unit=f"{domain}.read", errors=(NotFound,), examples=({"uri": example_uri},)):
        __doc__ = ReadQuery.__doc__

    return Log, ReadResource
