"""The table of formats: how a file is recognised, and what a new reader takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.model.headers.format_table import FORMATS
from services.model.headers.formats import claimed, inspect
from tests.stand_ins.tiny_models import tiny_e5s, tiny_gguf, tiny_onnx, tiny_safetensors

ROOT = Path(__file__).parents[2]
WRITE: dict[str, Callable[[Path], Path]] = {
    "gguf": tiny_gguf,
    "e5s": tiny_e5s,
    "safetensors": tiny_safetensors,
    "onnx": tiny_onnx,
}

# a format of its own, whose magic bytes do not stand at the start
READER = '''
"""The header of a drum model."""

from pathlib import Path

from services.model.headers.model_file import ModelFile


def read(path: Path) -> ModelFile:
    size = path.stat().st_size
    return ModelFile(format="drum", type="tts", name=path.stem, size=size, tensors_end=size)
'''
LINE = '            KnownFormat("drum", "drum", "drum", ".drum", b"DRUM", 300),\n'
BEFORE = '            KnownFormat("safetensors"'


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_read_by_the_reader_of_its_format_whatever_its_name(name: str, tmp_path: Path) -> None:
    assert inspect(WRITE[name](tmp_path / "weights")).format == name


@pytest.mark.parametrize(
    ("written", "name", "claims"),
    [
        ("gguf", "a", "gguf"),
        ("gguf", "a.onnx", "gguf"),
        ("e5s", "a.bin", "e5s"),
        ("onnx", "a", None),
        ("onnx", "a.onnx", "onnx"),
        ("safetensors", "a.safetensors", "safetensors"),
    ],
)
def test_a_file_claims_a_format_by_its_magic_bytes_or_by_the_formats_own_suffix(
    written: str, name: str, claims: str | None, tmp_path: Path
) -> None:
    known = claimed(WRITE[written](tmp_path / name))
    assert (known.name if known else None) == claims


def test_a_bin_file_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"\6\0\0\0 weights of some engine")
    assert claimed(tmp_path / "model.bin") is None


def test_a_new_reader_is_one_file_and_one_line(tmp_path: Path) -> None:
    for folder in ("libs", "services"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    headers = tmp_path / "services/model/headers"
    (headers / "drum.py").write_text(READER)
    table = (headers / "format_table.py").read_text()
    assert BEFORE in table
    (headers / "format_table.py").write_text(table.replace(BEFORE, LINE + BEFORE))
    (tmp_path / "kit.drum").write_bytes(bytes(300) + b"DRUM" + bytes(100))
    program = (
        "from pathlib import Path; from services.model import units\n"
        "from services.model.headers.formats import inspect\n"
        "model = inspect(Path('kit.drum')); print(model.format, model.type, model.size, units.KNOWN_FORMATS)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path / 'libs'}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "drum tts 404 ('gguf', 'e5s', 'drum', 'safetensors', 'onnx')\n", done.stderr
