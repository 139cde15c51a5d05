"""How units look as tools, and what the prompts say: the pure part of the Model Context Protocol."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from typer.testing import CliRunner

from aima_core.bus.directory import ResourceInfo, UnitInfo
from aima_core.errors import AimaError, Forbidden, InvalidRequest, NotFound, ValidationFailed
from services.cli import domains
from services.cli.main import app
from services.gateway.entrance.access import NOBODY, Principal
from services.gateway.mcp import prompts as prompts
from services.gateway.mcp import resources as resources
from services.gateway.mcp import tools as tools
from services.gateway.mcp.prompt_recipes import RECIPES
from services.gateway.mcp.tools import Mode
from tests.cli.described import every_unit


def unit(name: str, kind: str = "command", risk: str = "medium", **more: Any) -> UnitInfo:
    return UnitInfo(name=name, kind=kind, risk=risk, output={"type": "object"}, **more)


def units(*names: str) -> dict[str, UnitInfo]:
    return {name: unit(name) for name in names}


@pytest.mark.parametrize(
    ("told", "read_only", "destructive", "idempotent", "open_world"),
    [
        (unit("service.list", "query", "low"), True, False, True, False),
        (unit("gateway.list_keys", "query", "high"), True, False, True, False),
        (unit("model.search", "query", "low"), True, False, True, True),
        (unit("model.pull"), False, False, False, True),
        (unit("engine.install", idempotent=True), False, False, True, True),
        (unit("service.delete", risk="high", destructive=True), False, True, False, False),
        (unit("service.stop", destructive=True, idempotent=True), False, True, True, False),
        (unit("service.start", idempotent=True), False, False, True, False),
        (unit("inference.chat"), False, False, False, False),
    ],
)
def test_what_a_unit_says_of_itself_becomes_hints(
    told: UnitInfo, read_only: bool, destructive: bool, idempotent: bool, open_world: bool
) -> None:
    hints = tools.hints(told)
    assert hints.read_only_hint is read_only
    assert hints.destructive_hint is destructive
    assert hints.idempotent_hint is idempotent
    assert hints.open_world_hint is open_world


def test_the_units_that_can_end_or_remove_something_are_destructive() -> None:
    assert {each.name for each in every_unit() if tools.hints(each).destructive_hint} == {
        "engine.restart",
        "engine.start",  # its memory may come from an instance of lower priority
        "engine.stop",
        "gateway.revoke_key",
        "model.delete",
        "resource.allocate",
        "resource.release",
        "resource.update_slot",
        "service.delete",
        "service.scale",
        "service.start",
        "service.stop",
    }


def test_a_unit_whose_text_says_that_it_is_idempotent_declares_it() -> None:
    for each in every_unit():
        if re.search(r"\bidempotent\b|does nothing if", each.description, re.IGNORECASE):
            assert each.idempotent, each.name


def test_two_units_that_would_share_a_name_are_told_apart() -> None:
    both = units("a.b_c", "a_b.c", "x.y")
    assert tools.names(both) == {"a_b_c": "a.b_c", "a_b.c": "a_b.c", "x_y": "x.y"}
    for name in both:
        assert tools.find(name, both) is both[name]
    assert tools.find("a_b_c", both) is both["a.b_c"]
    assert tools.find("x_z", both) is None


def test_more_tools_than_fit_come_page_by_page_also_while_some_go() -> None:
    found = {f"tool_{number:03}": unit(f"tool.{number:03}") for number in range(450)}
    first, cursor = tools.page(found, None)
    del found[cursor or ""]
    second, cursor = tools.page(found, cursor)
    third, none = tools.page(found, cursor)
    assert [len(first), len(second), len(third), none] == [200, 200, 50, None]
    assert [tool.name for tool in (*first, *second, *third)] == sorted({tool.name for tool in first} | set(found))


def test_somebody_with_a_key_is_handed_what_it_reaches() -> None:
    known = units("service.start", "model.pull") | {"model.delete": unit("model.delete", risk="high")}
    key = Principal(name="one", key_id="key-1", scopes=("model:medium",))
    assert set(tools.offered(known, key, Mode())) == {"model_pull"}
    assert set(tools.offered(known, NOBODY, Mode())) == {"service_start", "model_pull", "model_delete"}


def test_a_unit_whose_answer_is_no_object_promises_no_structure() -> None:
    odd = UnitInfo(name="odd.list", kind="query", risk="low", output={"type": "array"})
    assert tools.tool_of("odd_list", odd).output_schema is None
    assert tools.tool_of("odd_list", odd).input_schema["type"] == "object"


@pytest.mark.parametrize(
    ("read_only", "only", "mode"),
    [
        ("", "", Mode()),
        ("true", "", Mode(read_only=True)),
        ("False", " service, model,", Mode(only=("service", "model"))),
        ("maybe", "", InvalidRequest),
    ],
)
def test_a_mode_is_read_from_a_query_string(read_only: str, only: str, mode: Any) -> None:
    if isinstance(mode, Mode):
        assert tools.mode_from(read_only, only) == mode
    else:
        with pytest.raises(mode):
            tools.mode_from(read_only, only)


def test_what_a_mode_hides_it_refuses() -> None:
    Mode(read_only=True, only=("model",)).admit(unit("model.list", "query"))
    with pytest.raises(Forbidden, match="the read-only mode has only queries"):
        Mode(read_only=True).admit(unit("model.pull"))
    with pytest.raises(Forbidden, match="which has only the domains service, model"):
        Mode(only=("service", "model")).admit(unit("engine.list", "query"))


# --- progress -----------------------------------------------------------------------------------------------------


def test_progress_always_grows() -> None:
    progress = tools.Progress()
    parts = [
        {"data": {"progress": 0.0, "status": "downloading"}, "type": "model.pull_progress"},
        {"data": {"progress": 50.0, "status": "downloading"}, "type": "model.pull_progress"},
        {"data": {"progress": 10.0, "status": "checking"}, "type": "model.pull_progress"},
        {"data": {"progress": 100.0, "phase": "ready"}, "type": "model.pull_progress"},
        {"data": {"model_id": "m"}, "type": "model.pulled"},
    ]
    told = [progress.of(part) for part in parts]
    assert [each[0] for each in told if each] == pytest.approx([0.001, 50, 50.001, 100, 100.001])
    assert [each[1:] for each in told if each] == [
        (100.0, "downloading"),
        (100.0, "downloading"),
        (100.0, "checking"),
        (100.0, "ready"),
        (None, "model.pulled"),
    ]


def test_the_pieces_of_a_text_are_progress() -> None:
    progress = tools.Progress()
    told = [progress.of(part) for part in ({"content": "Pa"}, {"text": "ris"}, {"waiting": {"queued": 1}}, "odd", 7)]
    assert told[:2] == [(1.0, None, "Pa"), (2.0, None, "ris")]
    assert told[2] == (pytest.approx(2.001), None, '{"waiting": {"queued": 1}}')
    assert told[3:] == [None, None]


# --- prompts ------------------------------------------------------------------------------------------------------


def said(name: str, offered: dict[str, UnitInfo], **given: str) -> str:
    (message,) = prompts.render(name, given, tools.offered(offered, NOBODY, Mode())).messages
    assert isinstance(message.content, types.TextContent)
    return message.content.text


def test_there_are_five_prompts() -> None:
    names = [prompt.name for prompt in prompts.listed()]
    assert names == ["model_management", "inference", "resource_optimization", "troubleshooting", "pipelines"]
    assert all(prompt.description and prompt.arguments for prompt in prompts.listed())


def test_a_prompt_names_the_tools_that_are_there_and_says_which_are_not() -> None:
    text = said("troubleshooting", units("service.status", "service.history"), service_id="svc-1", symptom="it hangs")
    assert "The service: svc-1\nWhat was observed: it hangs\n" in text
    assert "1. Check the status and the last error of each replica: `service_status`." in text
    assert "2. Read the service's events: `service_history`." in text
    assert "`service_logs`" not in text
    assert (
        "Some steps are omitted, because you may not call these units: device.health, engine.list, engine.logs" in text
    )


def test_a_prompt_without_its_tools_says_so() -> None:
    assert "You may call none of the tools for this task" in said("inference", units("device.list"))


def test_pipelines_are_gone_through_by_hand_unless_there_is_a_domain_for_them() -> None:
    chat = units("inference.chat")
    assert "You have no pipeline tools" in said("pipelines", chat, goal="minutes of a meeting")
    create = {"pipeline.create": unit("pipeline.create", description="Make a pipeline.\n\nMore.")}
    text = said("pipelines", chat | create, goal="minutes of a meeting")
    assert "- `pipeline_create`: Make a pipeline.\n" in text
    assert "No pipeline tools" not in text


def test_what_the_user_gives_is_told_as_it_is() -> None:
    assert "The request: {inference.chat} {0}" in said(
        "inference", units("inference.chat"), request="{inference.chat} {0}"
    )


@pytest.mark.parametrize(
    ("name", "given", "refusal", "message"),
    [
        ("nothing", {}, NotFound, "the prompts are model_management, inference"),
        ("pipelines", {}, ValidationFailed, "pipelines: goal: expected a value"),
        ("inference", {"modle": "x"}, ValidationFailed, "modle: expected one of request, model"),
        ("inference", {"request": "x" * 2001}, ValidationFailed, "request: expected at most 2000"),
    ],
)
def test_a_prompt_that_cannot_be_told_is_refused(
    name: str, given: dict[str, str], refusal: type[AimaError], message: str
) -> None:
    with pytest.raises(refusal, match=message):
        prompts.render(name, given, {})


def test_every_unit_that_the_prompts_name_is_one_of_ours() -> None:
    known = {found.spec.name for name in domains.names() for found in domains.load(name).units}
    named = {found for recipe in RECIPES.values() for step in recipe.steps for found in prompts._UNIT.findall(step)}
    assert named <= known


# --- resources ----------------------------------------------------------------------------------------------------


def test_addresses_with_an_id_are_templates() -> None:
    found = [ResourceInfo("asms://services", "All.", "service"), ResourceInfo("asms://service/{id}", "One.", "service")]
    assert [(each.uri, each.name) for each in resources.fixed(found)] == [("asms://services", "services")]
    (template,) = resources.templates(found)
    assert (template.uri_template, template.name, template.description) == ("asms://service/{id}", "service id", "One.")


def test_an_id_is_completed_from_the_list_of_its_domain() -> None:
    known = [ResourceInfo("asms://service/{id}", "One.", "service")]

    def lister(ref: Any, argument: str) -> str:
        params = types.CompleteRequestParams(ref=ref, argument=types.CompletionArgument(name=argument, value=""))
        return resources.lister(params, known)

    assert lister(types.ResourceTemplateReference(uri="asms://service/{id}"), "id") == "service.list"
    assert lister(types.ResourceTemplateReference(uri="asms://other/{id}"), "id") == ""
    assert lister(types.PromptReference(name="troubleshooting"), "service_id") == "service.list"
    assert lister(types.PromptReference(name="inference"), "model") == "model.list"
    listed = {"total": 3, "services": [{"id": "svc-b"}, {"id": "svc-a"}, {"id": "other"}]}
    assert resources.completion("svc-", listed).values == ["svc-a", "svc-b"]
    assert resources.completion("", {"items": [{"name": "llamacpp"}]}).values == ["llamacpp"]
    assert resources.completion("", {}).values == []
    many = resources.completion("", {"items": [{"id": f"m{number:03}"} for number in range(150)]})
    assert (len(many.values), many.total, many.has_more) == (100, 150, True)


# --- the document -------------------------------------------------------------------------------------------------


DOCUMENT = (Path(__file__).parents[3] / "docs" / "mcp.md").read_text()


def test_the_document_tells_of_every_prompt_and_its_arguments() -> None:
    for prompt in prompts.listed():
        given = ", ".join(f"`{each.name}`{' (required)' * bool(each.required)}" for each in prompt.arguments or ())
        assert f"| `{prompt.name}` | {given} | {prompt.description} |" in DOCUMENT


def test_the_document_tells_of_every_action_that_reaches_out() -> None:
    assert all(f"`{action}`" in DOCUMENT for action in tools.REACHES_OUT)


def test_the_examples_of_the_document_can_be_read() -> None:
    files = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)]
    stdio, http = (file["mcpServers"]["aima"] for file in files)
    assert stdio["args"][0] == "mcp"
    words = CliRunner().invoke(app, [*stdio["args"], "--help"])
    assert words.exit_code == 0
    assert http["url"].endswith("/mcp")


def test_the_units_of_ours_that_say_so_are_idempotent() -> None:
    commands = [each for each in every_unit() if each.kind == "command"]
    assert {each.name for each in commands if tools.hints(each).idempotent_hint} == {
        "device.detect",
        "device.set_power_limit",
        "engine.install",
        "engine.stop",
        "inference.settle",
        "model.create",
        "model.import",
        "model.pull",
        "resource.allocate",
        "resource.release",
        "resource.update_slot",
        "service.scale",
        "service.start",
        "service.stop",
    }
