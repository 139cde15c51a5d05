"""A unit gives the same answers and errors over the bus and over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from aima_core import call as calls
from aima_core.bus.directory import UnitInfo
from aima_core.errors import AimaError
from services.cli.door.door import Door, DoorAddress
from services.cli.door.opening import open_door
from services.cli.units.unit_call import CallOptions
from tests.cli.conftest import KEY, Shell

pytestmark = pytest.mark.timeout(300)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z?|\b[0-9a-f]{8,32}\b")
_FAR = ("model.search",)  # asks hubs, which answer as they like


async def told(door: Door, unit: str, data: dict[str, Any], **headers: str) -> Any:
    """Return a unit's answer or error, without values that differ at each call, such as times."""
    try:
        answer = await door.ask(unit, data, timeout=20, headers={**CallOptions().headers(), **headers})
        return _lasting(answer.data)
    except AimaError as error:
        return _lasting(error.body())


def _lasting(value: Any) -> Any:
    match value:
        case bool() | None:
            return value
        case int() | float():
            return 0
        case str():
            return _TIME.sub("~", value)
        case list():
            lasting = [_lasting(item) for item in value]
            return [item for index, item in enumerate(lasting) if item not in lasting[:index]]  # of samples come more
        case dict():
            return {key: _lasting(item) for key, item in value.items()}
    raise TypeError(value)


async def everywhere(shell: Shell) -> tuple[list[UnitInfo], dict[str, tuple[Any, Any]]]:
    """Call every unit over both doors, with invalid input and with its examples; commands as dry runs."""
    answers: dict[str, tuple[Any, Any]] = {}
    me = {calls.PRINCIPAL: "me"}  # over HTTP the key says so
    bus = (shell.one.data / "nats.url").read_text().strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIMA_DATA", str(shell.one.data))
        patch.setenv("AIMA_NATS_URL", bus)
        async with open_door(DoorAddress()) as near, open_door(DoorAddress(shell.url, KEY)) as far:
            assert (await near.domains()).keys() == (await far.domains()).keys()
            units = [unit for info in (await near.domains()).values() for unit in info.units.values()]
            for unit in units:
                assert await near.describe(unit.name) == await far.describe(unit.name)
                wrong: dict[str, Any] = {"nonsense": 1}
                planned = {calls.DRY_RUN: "true"} if unit.kind == "command" else {}
                for given in (wrong, *(unit.examples if unit.name not in _FAR else ())):
                    for _ in range(5):  # the world may move between the two
                        both = (
                            await told(near, unit.name, given, **planned, **me),
                            await told(far, unit.name, given, **planned),
                        )
                        if both[0] == both[1]:
                            break
                    answers[f"{unit.name} {json.dumps(given)}"] = both
    return units, answers


def test_every_unit_says_the_same_over_the_bus_and_over_http(shell: Shell) -> None:
    units, answers = asyncio.run(everywhere(shell))
    assert len(units) > 60
    for asked, (near, far) in answers.items():
        assert near == far, asked
    refused = [near for asked, (near, _) in answers.items() if asked.endswith('{"nonsense": 1}')]
    assert {answer["code"] for answer in refused} == {"VALIDATION_ERROR"}


@pytest.mark.parametrize(
    "words",
    [
        ["exec", "model.list"],
        ["exec", "model.lst"],
        ["exec", "weather.get"],
        ["exec", "model.get", "model_id=none"],
        ["exec", "model.get", "modle_id=none"],
        ["exec", "service.create", "replicas=many"],
        ["exec", "service.create", "--input", "{"],
        ["service", "start", "svc-none"],
        ["service", "strat"],
        ["model", "get", "none"],
        ["model", "list", "--limit", "0"],
        ["inference", "chat", "--model", "none", "--messages", '{"role": "user", "content": "?"}'],
        ["chat", "hello", "--model", "none"],
        ["units", "service.create"],
        ["units", "service"],
        ["units", "service.nonsense"],
        ["units", "nonsense"],
        ["keys", "list"],
    ],
    ids=" ".join,
)
def test_a_command_says_the_same_over_the_bus_and_over_http(shell: Shell, words: list[str]) -> None:
    form = [] if words[0] == "chat" else ["-o", "json"]
    near = shell.run(*words, *form)
    far = shell.run(*words, *form, "--url", shell.url, "--api-key", KEY)
    assert (near.returncode, near.stdout, near.stderr) == (far.returncode, far.stdout, far.stderr)
    assert near.stdout or near.stderr
