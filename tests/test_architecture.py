"""Rules about the source as a whole: who may import whom, how long a file and a function may be, what has a docstring.

Each list of exceptions holds what stood when the rule was written; it may only shrink.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import polar_rm

SOURCE = Path(polar_rm.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# From the ground up. A folder imports from lower floors only; folders of one floor never import each other.
FLOORS = [
    ["errors"],
    ["common"],
    ["records", "attention"],
    ["encoding", "reporting"],
    ["rewards", "model", "encoded"],
    ["publishing"],
    ["scoring", "protocols", "sampling", "training", "conversion"],
    ["client"],
    ["evaluation"],
    ["serving", "rft", "corpus", "calibration", "quantization", "audit", "references", "scaling", "selection"],
    ["parity", "quickstart"],
    ["cli"],
]
UPWARD: set[tuple[str, str]] = set()
CIRCLES: set[frozenset[str]] = set()
PRIVATE: set[tuple[str, str]] = set()
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
WITHOUT_DOCSTRING: set[str] = set()

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# What is used inside trainers and other people's environments, or has to start fast.
LIGHT = ["records", "encoding", "rewards", "protocols", "client", "corpus", "reporting", "sampling", "rft", "references"]
LIGHT += ["selection", "encoded"]
LIGHT_EXCEPT = ("sampling.backends.generation", "rft.run", "rft.callbacks", "rft.policy", "rft.baseline", "rft.report")


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file) for file in FILES}


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of ours at any depth, those for types included; name is empty for whole modules."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "polar_rm":
            base = node.module.removeprefix("polar_rm").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield (inner, "") if inner in MODULES else (base, alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name.removeprefix("polar_rm."), "") for alias in node.names if alias.name.startswith("polar_rm."))


def floor(module: str) -> int:
    folder = module.split(".")[0]
    return next((number for number, folders in enumerate(FLOORS) if folder in folders), len(FLOORS))


def functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, bool]]:
    """Qualified name, node and whether it is public, of all classes and functions outside functions."""

    def visit(node: ast.AST, above: str, public: bool) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name, seen = f"{above}.{child.name}", public and not child.name.startswith("_")
                yield name, child, seen
                if isinstance(child, ast.ClassDef):
                    yield from visit(child, name, seen)

    return visit(ast.parse(file.read_text(encoding="utf-8")), module_of(file), True)


def test_every_folder_has_a_floor():
    folders = {module.split(".")[0] for module in MODULES} - {"", "__main__"}
    assert folders == {folder for floor in FLOORS for folder in floor}


def test_imports_run_downwards():
    upward = set()
    for file in FILES:
        source = module_of(file)
        for target, _ in imports(file):
            same = target.split(".")[0] == source.split(".")[0]
            if source and target and source != "__main__" and not same and floor(target) >= floor(source):
                upward.add((source, target.split(".")[0]))
    assert upward <= UPWARD, sorted(upward - UPWARD)


def test_no_circle_of_files():
    graph = {module_of(file): {target for target, _ in imports(file) if target} for file in FILES}
    reached = {module: reach(graph, module) for module in graph}
    circles = {frozenset(m for m in reached[start] if start in reached.get(m, ())) for start in graph if start in reached[start]}
    assert circles <= CIRCLES, sorted(map(sorted, circles - CIRCLES))


def reach(graph: dict[str, set[str]], start: str) -> set[str]:
    """What a module imports, directly or through others; itself only where there is a circle."""
    reached: set[str] = set()
    todo = list(graph[start])
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += graph.get(module, ())
    return reached


def test_private_names_stay_in_their_file():
    private = {
        (module_of(file), f"{target}.{name}")
        for file in FILES
        for target, name in imports(file)
        if name.startswith("_") and not name.startswith("__")
    }
    assert private <= PRIVATE, sorted(private - PRIVATE)


def test_files_and_functions_are_short():
    files = {module_of(file) for file in FILES if len(file.read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES}
    long = {
        name
        for file in FILES
        for name, node, _ in functions(file)
        if not isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert files <= LONG_FILES, sorted(files - LONG_FILES)
    assert long <= LONG_FUNCTIONS, sorted(long - LONG_FUNCTIONS)


def test_public_names_have_docstrings():
    bare = {name for file in FILES for name, node, public in functions(file) if public and not ast.get_docstring(node)}
    assert bare <= WITHOUT_DOCSTRING, sorted(bare - WITHOUT_DOCSTRING)


@pytest.mark.parametrize("folder", LIGHT)
def test_what_runs_in_others_environments_loads_neither_torch_nor_transformers(folder):
    modules = [m for m in sorted(MODULES) if m.split(".")[0] == folder and not m.startswith(LIGHT_EXCEPT)]
    code = f"import sys, {', '.join('polar_rm.' + m for m in modules)}; print(*({{'torch', 'transformers'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.split() == []
