"""The gateway, assembled: read this first.

The gateway is a domain like the others, so that keys and their use are remembered: `state.py` and `decider.py` are
about keys. `outside.py` opens the doors, one folder each:

    entrance/     what every request passes: connection, host, key, rate, quota, errors
    rest/         units and resources over HTTP, and the OpenAPI document
    openai/ anthropic/ ollama/    the APIs of models, each through engines/
    engines/      a request's way to an engine and the answer's way back
    mcp/ grpc/    the units over the Model Context Protocol and gRPC
    events/       the event stream as server-sent events
    monitoring/   health and metrics

No door knows a unit by heart that it can learn from the bus.
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
    about="The doors for HTTP and MCP, and the keys that they accept.",
    state=Key,
    events=u.EVENTS,
    commands=(u.CreateKey, u.RevokeKey),
    internal=(i.RecordKey, i.ReserveTokens, i.SettleTokens),
    queries=(u.ListKeys, u.Identify),
    decide=decide,
    evolve=evolve,
    reply=reply,
    outside=GatewayOutside,
    settings=GatewaySettings,
    log_risk="high",  # as high as that of listing the keys
)
