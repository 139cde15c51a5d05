"""The import rules are kept by a tool; here it is seen to find what breaks them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLANTED = {
    "libs/aima_core/call.py": "import services.engine.units",
    "libs/aima_core/errors.py": "import aima_engines.sse_parser",
    "libs/aima_engines/assembly.py": "import services.inference.units",
    "services/service/rules/decider.py": "import services.engine.rules.decider",
    "services/engine/rules/views.py": "import services.cli.main",
    "services/model/outside/adapter.py": "from services.resource.units import GetBudget",  # this is allowed
}


def test_planted_imports_that_break_the_rules_are_found(tmp_path: Path) -> None:
    for name in ("libs", "services"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    for name, line in PLANTED.items():
        with (tmp_path / name).open("a") as file:
            file.write(f"\n{line}\n")
    lint = Path(sys.executable).parent / "lint-imports"
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path / 'libs'}:{tmp_path}", "COLUMNS": "400"}
    done = subprocess.run(
        [lint, "--no-cache"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 kept, 2 broken" in done.stdout
    found = {line.strip().removeprefix("- ").partition(" (")[0] for line in done.stdout.splitlines() if " -> " in line}
    assert {
        "aima_core.call -> services.engine.units",
        "aima_core.errors -> aima_engines.sse_parser",
        "aima_engines.assembly -> services.inference.units",
        "services.service.rules.decider -> services.engine.rules.decider",
        "services.engine.rules.views -> services.cli.main",
    } <= found
    assert not any("services.model.outside.adapter -> services.resource" in line for line in found)
