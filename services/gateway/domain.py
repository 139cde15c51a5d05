"""The gateway, assembled: read this first.

The gateway is a domain because it records keys and their usage: `state.py` and `decider.py` are about keys.
`outside.py` opens the doors. The folders:

    entrance/     checks every request: host, key, rate and quota; listens on sockets and formats errors
    rest/         units and resources over HTTP, and the OpenAPI document
    openai/ anthropic/ ollama/    the APIs for models, which all use engines/
    engines/      sends requests to engines and returns their answers
    mcp/ grpc/    the units over the Model Context Protocol and gRPC
    events/       the event stream as server-sent events
    monitoring/   health and metrics

Wherever possible, a door must read the units from the bus and must not list units in its code.
"""

from __future__ import annotations

from aima_core.domain import Domain
from services.gateway import internal as i
from services.gateway import units as u
from services.gateway.decider import decide, reply
from services.gateway.outside import GatewayOutside
from services.gateway.settings import GatewaySettings
from services.gateway.state import Key, evolve

GATEWAY = Domain(
    name="gateway",
    about="The doors for HTTP, MCP and gRPC, and the keys that they accept.",
    state=Key,
    events=u.EVENTS,
    commands=u.COMMANDS,
    internal=i.COMMANDS,
    queries=u.QUERIES,
    decide=decide,
    evolve=evolve,
    reply=reply,
    outside=GatewayOutside,
    settings=GatewaySettings,
    log_risk="high",  # the risk of gateway.list_keys, because the log contains everything that list_keys returns
)
