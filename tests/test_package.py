"""What is installed without a clone: a wheel has every file of the product, and its licence."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_has_every_file_of_the_product(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("libs", "services"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    options = ["-q", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "-w", "dist"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "."], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").glob("aima-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    product = {
        str(file.relative_to(base))
        for base, package in ((ROOT / "libs", "aima_core"), (ROOT / "libs", "aima_engines"), (ROOT, "services"))
        for file in (base / package).rglob("*.*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert product <= packed, sorted(product - packed)
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert not any(name.startswith(("tests", "docs", "examples", "benchmarks")) for name in packed)
