"""Loads engine manifests, and makes the command line of a start from a manifest. Must not start processes."""

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
    """Return the built-in manifests and the manifests in the folders, by engine name.

    A manifest in a folder replaces the manifest of the same name that is built in or in an earlier folder.

    A missing folder counts as empty. Raises ValidationFailed (reason MANIFEST_INVALID) for an invalid manifest, and if
    two manifests of one folder have the same name. The error names the file and the expected value of each bad field.
    """
    manifests: dict[str, Manifest] = {}
    for folder in (BUILT_IN, *folders):
        files: dict[str, Path] = {}
        for file in sorted(path for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern)):
            manifest = _load(file)
            if other := files.get(manifest.name):
                raise _invalid(file, [{"field": "name", "expected": f"a unique name; {other.name} has the same name"}])
            files[manifest.name] = file
            manifests[manifest.name] = manifest
    return manifests


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
    listed = "; ".join(f"{fault['field']}: {fault['expected']}" for fault in fields)
    return ValidationFailed(f"{file}: {listed}", reason="MANIFEST_INVALID", file=str(file), fields=fields)


def check(manifest: Manifest, config: Mapping[str, object]) -> None:
    """Raise ValidationFailed if the config has unknown options or bad values. The error names each such option."""
    if faults := manifest.faults(config):
        fields = [fault | {"field": f"config.{fault['field']}"} for fault in faults]
        listed = "; ".join(f"{fault['field']}: expected {fault['expected']}" for fault in fields)
        raise ValidationFailed(f"engine {manifest.name} does not accept the config; {listed}", fields=fields)


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
    """Return the command line and the environment of a start.

    Each option gets its value from `config`, or else from the preset for the model's type, or else from the option's
    default. Raises the errors of `check`.
    """
    check(manifest, config)
    preset = next((values for name, values in manifest.presets.items() if name == model_type), {})
    options = {name: config.get(name, preset.get(name, option.value())) for name, option in manifest.options.items()}
    values = {name: _text(value) for name, value in options.items() if value is not None}
    values |= {"python": python, "model_path": model_path, "model_name": model_name, "port": str(port), "host": host}
    args = [
        arg
        for name, option in manifest.options.items()
        if options[name] is not None and options[name] is not False
        for arg in option.args
    ]
    argv = tuple(template.format_map(values) for template in (*manifest.command, *args))
    return argv, {name: template.format_map(values) for name, template in manifest.env.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def explain(manifest: Manifest, log_lines: Sequence[str]) -> tuple[str, str] | None:
    """Return the error code and message of a known failure in the log of the last run; None if no pattern matches."""
    starts = [number for number, line in enumerate(log_lines) if line.startswith(START_LINE)]
    run = log_lines[starts[-1] :] if starts else log_lines
    for failure in manifest.failures:
        for line in run:
            if match := re.search(failure.pattern, line):
                return failure.error_code, failure.message.format_map(match.groupdict(""))
    return None
