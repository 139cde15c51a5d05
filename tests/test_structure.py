"""Where files stand: no import cycle, small folders, one meaning for a base name, a place for each kind of file."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = 14  # modules in a folder, `__init__.py` aside

# the files that each domain has under the same name
OF_A_DOMAIN = {"domain", "units", "internal", "settings", "__main__"}
RULES = {"decider", "state", "todo", "views", "replies"}
# the gateway's own files are few and stand at its root, beside a folder for each door
AT_THE_ROOT = {"gateway": RULES | {"outside"}, "engine": {"llamacpp_server"}, "cli": {"entry", "main", "domains"}}
# folders of code that awaits or blocks, beside `outside/`: ports and what is behind them
PORTS = {
    "device": {"drivers"},
    "engine": {"runtimes", "manifests"},
    "model": {"files", "headers", "paths", "selection", "sources"},
}
# the same role in several places: the files of a domain, of an API, of a port, of what is known of a start
ROLES = OF_A_DOMAIN | RULES | {"adapter", "api", "requests", "answers", "resources", "start_facts", "__init__"}


def modules() -> dict[str, Path]:
    """Return the modules of the product: dotted name to file."""
    files = [*ROOT.glob("libs/**/*.py"), *ROOT.glob("services/**/*.py")]
    return {_dotted(file): file for file in sorted(files) if "_pb2" not in file.name}


def _dotted(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("libs", "__init__"))


def imports(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return which modules each one imports, also those that only a type checker reads."""
    return {name: set(_imported(file, modules)) for name, file in modules.items()}


def _imported(file: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                if inner in modules or node.module in modules:
                    yield inner if inner in modules else node.module


def cycles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach each other (Tarjan's strongly connected components of two or more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return groups


def folders(graph: Mapping[str, Iterable[str]], modules: Mapping[str, Path]) -> dict[str, dict[str, set[str]]]:
    """Return, for each package, which of its inner folders import which of their siblings."""
    siblings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, others in graph.items():
        own = modules[name].relative_to(ROOT).parts[:-1]
        for other in others:
            there = modules[other].relative_to(ROOT).parts[:-1]
            depth = next((i for i, pair in enumerate(zip(own, there, strict=False)) if pair[0] != pair[1]), None)
            if depth is not None and depth > 1:  # below services/<domain> and libs/aima_core
                siblings["/".join(own[:depth])][own[depth]].add(there[depth])
    return siblings


MODULES = modules()
GRAPH = imports(MODULES)


def test_there_is_no_import_cycle() -> None:
    assert cycles(GRAPH) == []


def test_no_two_folders_of_a_package_import_each_other() -> None:
    found = {package: cycles(graph) for package, graph in folders(GRAPH, MODULES).items()}
    assert {package: groups for package, groups in found.items() if groups} == {}


def test_a_cycle_is_found() -> None:
    assert cycles({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}) == [["a", "b", "c"]]
    assert cycles({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_a_folder_has_about_a_dozen_modules() -> None:
    sizes: dict[Path, int] = defaultdict(int)
    for file in MODULES.values():
        sizes[file.parent.relative_to(ROOT)] += file.name != "__init__.py"
    assert {str(folder): size for folder, size in sizes.items() if size > MOST} == {}


def test_a_base_name_means_one_thing() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in MODULES.values():
        if file.parent != ROOT / "services/cli/commands" and file.stem not in ROLES:
            places[file.stem].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


DOMAINS = sorted(file.parent.name for file in ROOT.glob("services/*/domain.py"))


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_files_of_a_domain_stand_where_their_kind_stands(domain: str) -> None:
    folder = ROOT / "services" / domain
    root = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert root >= {"domain", "units"}
    assert root <= OF_A_DOMAIN | AT_THE_ROOT.get(domain, set())
    if domain == "gateway":
        return
    inner = {path.name for path in folder.iterdir() if any(path.glob("*.py"))}
    assert inner <= {"rules", "outside"} | PORTS.get(domain, set())


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_awaits_stands_outside_the_rules(domain: str) -> None:
    """That the rules are pure: test_purity.py. Here: what awaits is in no other folder than those for it."""
    places = {"outside", "outside.py", *PORTS.get(domain, set())}
    if domain == "gateway":
        places |= {path.name for path in (ROOT / "services/gateway").iterdir() if path.is_dir()}
    awaiting = [
        file.relative_to(ROOT / "services" / domain)
        for file in (ROOT / "services" / domain).rglob("*.py")
        if any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(ast.parse(file.read_text())))
    ]
    assert [str(file) for file in awaiting if file.parts[0] not in places] == []
