"""Which package may import which: data flows one way."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "kinv"
MAY_IMPORT = {
    "data": [],
    "classifiers": ["kinv.data"],
    "inversion": ["kinv.serving.signature"],
    "serving": [],
    "analysis": ["kinv.serving", "kinv.data", "kinv.classifiers.features"],
}
# Lower ones first: each may import those before it.
SHARED = [
    *("errors", "files", "pixels", "images", "intervals", "measures"),
    *("devices", "runs", "cli"),
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path):
    """Modules of kinv that a module imports, anywhere in it."""
    known = {name_of(module) for module in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else node.module)
    return {name for name in found if name.split(".")[0] == "kinv"} - {"kinv"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    _, *parts = name_of(path).split(".")
    place = parts[0] if parts else ""
    allowed = [f"kinv.{name}" for name in SHARED]
    if place in MAY_IMPORT:
        allowed += [f"kinv.{place}", *MAY_IMPORT[place]]
    elif place in SHARED:
        allowed = allowed[: SHARED.index(place)]
    for name in imports_of(path):
        assert any(
            name == prefix or name.startswith(prefix + ".")
            for prefix in allowed
        ), f"{name_of(path)} imports {name}"


def test_no_module_imports_itself_in_a_circle():
    graph = {name_of(path): imports_of(path) for path in MODULES}

    def reached(start):
        found, todo = set(), [start]
        while todo:
            for name in graph.get(todo.pop(), ()):
                if name not in found:
                    found.add(name)
                    todo.append(name)
        return found

    for name in graph:
        assert name not in reached(name)
