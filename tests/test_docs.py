"""What the documents say is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from aima_core.units import parse
from docs.generators import routes, states, units
from services.cli import domains
from services.service.rules.decider import id_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_unit_reference_is_what_make_docs_writes() -> None:
    assert (ROOT / "docs" / "units.md").read_text() == "\n".join(units.pages()).rstrip() + "\n"


def test_the_tables_of_routes_are_what_make_docs_writes() -> None:
    text = routes.FILE.read_text()
    assert text == routes.written(text)


def test_the_pictures_of_a_service_are_what_make_docs_draws() -> None:
    text = states.FILE.read_text()
    assert text == states.drawn(text)


def test_every_domain_and_unit_stands_in_the_readme() -> None:
    for name in domains.names():
        row = next(line for line in README.splitlines() if line.startswith(f"| [{name}]"))
        generic = ("inference",)  # names its modalities in words
        for unit in domains.load(name).units:
            assert name in generic or f"`{unit.spec.action}`" in row, unit.spec.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_goes_on_with_the_service_that_it_creates(document: Path) -> None:
    for example in re.split(r"\n(?=\S)", document.read_text()):
        if creating := re.findall(r".*(?:create .*model.id|-d .*\"model_id\").*", example):
            named = (re.search(r"\bname\W+([\w.-]+)", line) for line in creating)
            assert set(re.findall(r"\bsvc-[\w-]+", example)) <= {id_of(name[1]) for name in named if name}, example


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_is_there(document: Path) -> None:
    text = document.read_text()
    written = {line.strip("`:") for line in text.splitlines() if re.fullmatch(r"`[\w./]+`:", line)}  # by a recipe
    named = set(re.findall(r"`((?:deploy|docs|examples|libs|services|tests)/[\w./-]+\.\w+)`", text))
    assert [name for name in sorted(named - written) if not (ROOT / name).exists()] == []


def test_every_page_stands_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    targets = set(re.findall(r"\]\(([\w.-]+\.md)\)", index.read_text()))
    assert targets == {page.name for page in index.parent.glob("*.md")} - {index.name}


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = (ROOT / "docs" / "dependencies.md").read_text()
    names = [re.split(r"[<>=;\[ ]", text)[0] for text in project["dependencies"]]
    names += [re.split(r"[<>=;\[ ]", text)[0] for text in project["optional-dependencies"]["dev"]]
    for name in names:
        assert name in listed.lower() or name.startswith("types-"), name


def test_the_lock_files_name_no_index_and_pin_everything_by_hash() -> None:
    for file in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / file).read_text()
        assert "://" not in text
        assert "--index" not in text
        assert text.count("==") >= 30
        for block in re.split(r"\n(?=\S)", text):
            assert block.startswith("#") or "==" not in block or "--hash=sha256:" in block


def test_every_example_of_every_unit_is_valid_input() -> None:
    import json

    for name in domains.names():
        for unit in domains.load(name).units:
            assert unit.spec.examples, unit.spec.name
            for example in unit.spec.examples:
                parse(unit, json.dumps(example))


def test_every_unit_event_and_field_explains_itself() -> None:
    for name in domains.names():
        domain = domains.load(name)
        for unit in domain.units:
            assert unit.description(), unit.spec.name
            properties = unit.model_json_schema().get("properties", {})
            for field, found in properties.items():
                said = found.get("description")
                assert said, f"{unit.spec.name}.{field}"
        for event in domain.events:
            assert event.__doc__, event.unit
            assert event.unit.startswith(f"{name}."), event.unit
