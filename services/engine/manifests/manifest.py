"""Reading the engine manifests, and turning one into the command of a start. Starts nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from aima_core.errors import ValidationFailed
from services.engine.manifests.manifest_schema import Manifest
from services.engine.runtimes import START_LINE

BUILT_IN = Path(__file__).parent


def load_manifests(folders: Sequence[Path]) -> dict[str, Manifest]:
    """Return every manifest by engine name: the built-in ones, then those of the folders, where the later one wins.

    A folder that is not there holds none. Raises ValidationFailed (reason MANIFEST_INVALID) that names the file, each
    bad field and what was expected; also for two manifests of one name in one folder, of which neither can be meant.
    """
    found: dict[str, Manifest] = {}
    for folder in (BUILT_IN, *folders):
        files: dict[str, Path] = {}
        for file in sorted(path for ending in ("*.yaml", "*.yml") for path in folder.glob(ending)):
            manifest = _load(file)
            if other := files.get(manifest.name):
                raise _invalid(file, [{"field": "name", "expected": f"a name that {other.name} has not taken"}])
            files[manifest.name] = file
            found[manifest.name] = manifest
    return found


def _load(file: Path) -> Manifest:
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise _invalid(
            file,
            [
                {
                    "field": ".".join(str(part) for part in fault["loc"]) or "(file)",
                    "expected": fault["msg"].removeprefix("Value error, "),
                }
                for fault in error.errors(include_url=False, include_context=False, include_input=False)
            ],
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "(file)"
        raise _invalid(
            file, [{"field": where, "expected": f"YAML: {getattr(error, 'problem', None) or error}"}]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(file, [{"field": "(file)", "expected": f"readable UTF-8 text: {error}"}]) from None


def _invalid(file: Path, fields: list[dict[str, str]]) -> ValidationFailed:
    named = "; ".join(f"{fault['field']}: {fault['expected']}" for fault in fields)
    return ValidationFailed(f"{file}: {named}", reason="MANIFEST_INVALID", file=str(file), fields=fields)


def check(manifest: Manifest, config: Mapping[str, object]) -> None:
    """Raise ValidationFailed that names each field of a config that the engine does not take."""
    if faults := manifest.faults(config):
        fields = [fault | {"field": f"config.{fault['field']}"} for fault in faults]
        named = "; ".join(f"{fault['field']}: {fault['expected']}" for fault in fields)
        raise ValidationFailed(f"{manifest.name}: {named}", fields=fields)


def render(
    manifest: Manifest,
    *,
    python: str,
    model_path: str,
    model_name: str,
    port: int,
    host: str,
    config: Mapping[str, object],
    model_type: str | None = None,
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command and the environment of a start.

    The config's options go before those that the model's type needs, and these before the defaults.
    Raises what `check` does.
    """
    check(manifest, config)
    preset = next((values for name, values in manifest.presets.items() if name == model_type), {})
    chosen = {name: config.get(name, preset.get(name, option.value())) for name, option in manifest.options.items()}
    known = {name: _text(value) for name, value in chosen.items() if value is not None}
    known |= {"python": python, "model_path": model_path, "model_name": model_name, "port": str(port), "host": host}
    args = [
        arg
        for name, option in manifest.options.items()
        if chosen[name] is not None and chosen[name] is not False
        for arg in option.args
    ]
    argv = tuple(template.format_map(known) for template in (*manifest.command, *args))
    return argv, {name: template.format_map(known) for name, template in manifest.env.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def explain(manifest: Manifest, log_lines: Sequence[str]) -> tuple[str, str] | None:
    """Return error code and message of what the log of the last run says went wrong; None when nothing is known."""
    starts = [number for number, line in enumerate(log_lines) if line.startswith(START_LINE)]
    run = log_lines[starts[-1] :] if starts else log_lines
    for failure in manifest.failures:
        for line in run:
            if found := re.search(failure.pattern, line):
                return failure.error_code, failure.message.format_map(found.groupdict(""))
    return None
