"""The prompts: they tell an agent which tools to use, in which order. Pure; their texts: `prompt_recipes.py`.

A step is told with the tools that are really there. One that needs a tool which is not, because its domain is not on
the bus or the client is not handed it, is left out, and the prompt says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mcp_types import GetPromptResult, Prompt, PromptArgument, PromptMessage, TextContent

from aima_core.bus.directory import UnitInfo
from aima_core.errors import NotFound, ValidationFailed
from services.gateway.mcp.prompt_recipes import RECIPES, Recipe

_LONGEST = 2000  # characters of an argument
_UNIT = re.compile(r"\{([a-z0-9_]+\.[a-z0-9_]+)\}")
_MANNERS = (
    "A refusal has `code`, `message` and `details`: `details.reason` says exactly what is wrong, the message often "
    "what to do about it. What is marked destructive needs the user's word first. "
    "Asking for what already is, is no error. Report what the tools have answered, never what you suppose."
)
_NO_PIPELINES = (
    "There is no pipeline domain on the bus, or it is not offered here: nothing remembers the chain, or runs it again "
    "by itself. Go through it yourself, one call after the other, and keep each result for the next."
)

Tools = Mapping[str, UnitInfo]  # those that the client is handed, by their names as tools


def listed() -> list[Prompt]:
    """Return the prompts that there are."""
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


def told(name: str, given: Mapping[str, str], tools: Tools) -> GetPromptResult:
    """Return a prompt; raise NotFound, or ValidationFailed for its arguments."""
    recipe = RECIPES.get(name)
    if recipe is None:
        known = ", ".join(RECIPES)
        raise NotFound(f"there is no prompt {name[:100]}; there are {known}", reason="PROMPT_NOT_FOUND")
    _check(recipe, given)
    text = TextContent(text=_text(recipe, given, tools))
    return GetPromptResult(description=recipe.about, messages=[PromptMessage(role="user", content=text)])


def _check(recipe: Recipe, given: Mapping[str, str]) -> None:
    known = [argument.name for argument in recipe.arguments]
    faults = [(name[:100], f"one of {', '.join(known)}") for name in given if name not in known]
    faults += [(each.name, "a value") for each in recipe.arguments if each.required and not given.get(each.name)]
    faults += [(name[:100], f"at most {_LONGEST} characters") for name in given if len(given[name]) > _LONGEST]
    if faults:
        fields = [{"field": field, "expected": expected} for field, expected in faults]
        raise ValidationFailed(f"{recipe.name}: {faults[0][0]}: {faults[0][1]}", fields=fields)


def _text(recipe: Recipe, given: Mapping[str, str], tools: Tools) -> str:
    by_unit = {unit.name: tool for tool, unit in tools.items()}
    needed = {unit for step in recipe.steps for unit in _UNIT.findall(step)}
    lacking = sorted(needed - set(by_unit))
    able = [step for step in recipe.steps if set(_UNIT.findall(step)) <= set(by_unit)]
    lines = [recipe.aim]
    lines += [argument.said.format(given[argument.name]) for argument in recipe.arguments if given.get(argument.name)]
    lines.append("")
    lines += [
        f"{number}. {_UNIT.sub(lambda found: f'`{by_unit[found[1]]}`', step)}" for number, step in enumerate(able, 1)
    ]
    if not able:
        lines.append("None of the tools that this takes is offered here: say so, and stop.")
    if lacking:
        lines += ["", f"Not offered here, so without the steps that need them: {', '.join(lacking)}."]
    if recipe.name == "pipelines":
        lines += ["", _pipelines(tools)]
    return "\n".join([*lines, "", recipe.ending, "", _MANNERS])


def _pipelines(tools: Tools) -> str:
    """Tell what there is for chains of steps: the tools of a pipeline domain, or that there is none."""
    own = [f"- `{tool}`: {unit.summary}" for tool, unit in sorted(tools.items()) if unit.domain == "pipeline"]
    if not own:
        return _NO_PIPELINES
    return "\n".join(["The pipeline domain is here; prefer its tools to going step by step:", *own])
