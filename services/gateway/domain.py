"""The gateway, assembled: read this first.

It is a domain like the others, so that keys and what they use are remembered: `state.py` and `decider.py` are about
those, `access.py` says who may do what. Its outside is the doors: `server.py` listens, `gate.py` is what every request
passes, `app.py` has the routes. `native.py` asks units by `rest.py`'s rule, `openapi.py` describes them,
`following.py` tells what happens; the others speak the APIs of others: `openai_api.py`, `anthropic_api.py`,
`ollama_api.py` through `carrying.py`, and `mcp_api.py`. No door knows a unit by heart that it can learn from the bus.
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
