"""Renders the prompts, which tell an agent which tools to use, and in which order. Pure.

`prompt_recipes.py` has the texts. A prompt names only tools that the client may call. A tool is missing if its domain
is not on the bus, or if the client's mode or key excludes the tool. A step that needs a missing tool is omitted, and
the prompt lists the missing units.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mcp_types import GetPromptResult, Prompt, PromptArgument, PromptMessage, TextContent

from aima_core.bus.directory import UnitInfo
from aima_core.errors import NotFound, ValidationFailed
from services.gateway.mcp.prompt_recipes import RECIPES, Recipe

_LONGEST = 2000  # the most characters of an argument
_UNIT = re.compile(r"\{([a-z0-9_]+\.[a-z0-9_]+)\}")
_RULES = (
    "An error has `code`, `message` and `details`: `details.reason` is the exact cause, and `message` often says what "
    "to do next. Ask the user before you call a tool that is marked destructive. "
    "A command whose goal is already reached succeeds. Report only what the tools returned; do not guess."
)
_NO_PIPELINES = (
    "You have no pipeline tools, so nothing stores the chain or runs it again automatically. Make the calls yourself, "
    "one after the other, and keep each result for the next call."
)

Tools = Mapping[str, UnitInfo]  # the units that the client may call, by tool name


def listed() -> list[Prompt]:
    """Return all prompts."""
    return [
        Prompt(
            name=recipe.name,
            title=recipe.title,
            description=recipe.about,
            arguments=[
                PromptArgument(name=argument.name, description=argument.about, required=argument.required)
                for argument in recipe.arguments
            ],
        )
        for recipe in RECIPES.values()
    ]


def render(name: str, values: Mapping[str, str], tools: Tools) -> GetPromptResult:
    """Return the text of a prompt. Raises NotFound for an unknown name, and ValidationFailed for invalid arguments."""
    recipe = RECIPES.get(name)
    if recipe is None:
        known = ", ".join(RECIPES)
        raise NotFound(f"there is no prompt {name[:100]}; the prompts are {known}", reason="PROMPT_NOT_FOUND")
    _check(recipe, values)
    text = TextContent(text=_text(recipe, values, tools))
    return GetPromptResult(description=recipe.about, messages=[PromptMessage(role="user", content=text)])


def _check(recipe: Recipe, values: Mapping[str, str]) -> None:
    known = [argument.name for argument in recipe.arguments]
    faults = [(name[:100], f"one of {', '.join(known)}") for name in values if name not in known]
    faults += [
        (argument.name, "a value")
        for argument in recipe.arguments
        if argument.required and not values.get(argument.name)
    ]
    faults += [(name[:100], f"at most {_LONGEST} characters") for name in values if len(values[name]) > _LONGEST]
    if faults:
        fields = [{"field": field, "expected": expected} for field, expected in faults]
        raise ValidationFailed(f"{recipe.name}: {faults[0][0]}: expected {faults[0][1]}", fields=fields)


def _text(recipe: Recipe, values: Mapping[str, str], tools: Tools) -> str:
    by_unit = {unit.name: tool for tool, unit in tools.items()}
    wanted = {unit for step in recipe.steps for unit in _UNIT.findall(step)}
    missing = sorted(wanted - set(by_unit))
    usable = [step for step in recipe.steps if set(_UNIT.findall(step)) <= set(by_unit)]
    lines = [recipe.aim]
    lines += [argument.line.format(values[argument.name]) for argument in recipe.arguments if values.get(argument.name)]
    lines.append("")
    lines += [
        f"{number}. {_UNIT.sub(lambda match: f'`{by_unit[match[1]]}`', step)}" for number, step in enumerate(usable, 1)
    ]
    if not usable:
        lines.append("You may call none of the tools for this task. Tell the user, and stop.")
    if missing:
        lines += ["", f"Some steps are omitted, because you may not call these units: {', '.join(missing)}."]
    if recipe.name == "pipelines":
        lines += ["", _pipelines(tools)]
    return "\n".join([*lines, "", recipe.ending, "", _RULES])


def _pipelines(tools: Tools) -> str:
    """Return a line for each tool of the pipeline domain. If the client has none, return a line that says so."""
    own = [f"- `{tool}`: {unit.summary}" for tool, unit in sorted(tools.items()) if unit.domain == "pipeline"]
    if not own:
        return _NO_PIPELINES
    return "\n".join(["Use the tools of the pipeline domain instead of single calls:", *own])
