"""The rules of the house, read off the source: layers, dependencies, length of functions."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Imports go only downward. The commands are the modules directly in moe_jax/ (train, report, ...)
# and what prepares data.
LAYERS = (
    "commands sweeps checking planning training tasks data models nn analysis dispatch experts "
    "routing ops parallel config"
).split()
PURE = ("routing", "experts", "dispatch", "ops")  # plain arrays: no Flax, no ConfigDict
# Where it is not the package's.
IMPORT_NAMES = {
    "absl_py": "absl",
    "orbax_checkpoint": "orbax",
    "pyyaml": "yaml",
    "scikit_learn": "sklearn",
    "pillow": "PIL",
}
MAX_LINES = 60

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "moe_jax").rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}


def layer(module: str) -> str:
    parts = module.split(".")
    is_command = len(parts) == 1 or SOURCES[module].parent == ROOT / "moe_jax"
    is_command |= module == "moe_jax.data.prepare"
    return "commands" if is_command else parts[1]


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything that a module imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write the import from moe_jax"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own_imports(module: str) -> Iterator[tuple[str, int]]:
    """(module of moe_jax, line) of what a module of moe_jax imports."""
    for name, line in imported(TREES[module]):
        if name.split(".")[0] == "moe_jax" and name != "moe_jax.__version__":
            target = name if name in SOURCES else name.rpartition(".")[0]
            assert target in SOURCES, f"{module}:{line} imports {name}, which is not there"
            yield target, line


def third_party(tree: ast.AST) -> set[str]:
    tops = {name.split(".")[0] for name, _ in imported(tree)}
    return tops - set(sys.stdlib_module_names) - {"moe_jax", "tests"}


def requirements(variable: str) -> set[str]:
    """The import names of the packages in a list of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable:
            texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
            names = [re.match(r"[\w-]+", text)[0].replace("-", "_") for text in texts]
            return {IMPORT_NAMES.get(name, name) for name in names}
    raise AssertionError(f"setup.py has no {variable}")


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_folder_is_a_package_with_a_layer():
    assert {path.parent / "__init__.py" for path in SOURCES.values()} <= set(SOURCES.values())
    assert {layer(module) for module in SOURCES} <= set(LAYERS)


def test_imports_go_only_downward():
    upward = [
        f"{module}:{line} imports {name}"
        for module in SOURCES
        for name, line in own_imports(module)
        if LAYERS.index(layer(name)) < LAYERS.index(layer(module))
    ]
    assert not upward


def test_no_import_cycle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for name, _ in own_imports(module):
                visit(name, (*path, module))
            done.add(module)

    for module in SOURCES:
        visit(module, ())


@pytest.mark.parametrize("module", SOURCES)
def test_only_declared_packages_are_imported(module: str):
    inside = {id(node) for function in functions(TREES[module]) for node in ast.walk(function)}
    top_level = [node for node in ast.walk(TREES[module]) if id(node) not in inside]
    at_import = set().union(
        *(third_party(node) for node in top_level if isinstance(node, ast.Import | ast.ImportFrom))
    )
    assert at_import <= requirements("CORE")
    extras = requirements("EXTRAS").union(*map(requirements, USED))
    assert third_party(TREES[module]) <= requirements("CORE") | extras


# Extras that the package itself imports.
USED = ("TEXT", "DATA", "VISION", "SWEEP", "TRANSLATION")
# What the tests of a folder import beside the usual; a target of its own installs it.
FOLDERS = {
    "oracles": {"torch", "transformers", "pycocotools"},
    "extras": {"wandb", "matplotlib", "gcp_storage_emulator", "moto", "boto3"},
}


def test_tests_import_only_their_extras():
    # Tests of experiments import them from the clone; the package must not.
    usual = requirements("CORE") | requirements("TEST") | {"experiments"}
    usual = usual.union(*map(requirements, (*USED, "SLURM", "KUBERNETES")))
    for path in sorted((ROOT / "tests").rglob("*.py")):
        allowed = usual.union(*(more for folder, more in FOLDERS.items() if folder in path.parts))
        assert third_party(ast.parse(path.read_text("utf-8"))) <= allowed, path


def test_tests_do_not_import_each_other():
    """What two of them need has a module of its own."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, line in imported(ast.parse(path.read_text("utf-8"))):
            module = name.rpartition(".")[0]
            assert not re.match(r"tests\..*\btest_\w+$", module), f"{path}:{line} imports {name}"


def test_a_class_name_has_one_meaning():
    named: dict[str, list[str]] = {}
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                named.setdefault(node.name, []).append(module)
    assert {name: where for name, where in named.items() if len(where) > 1} == {}


def test_routing_dispatch_and_ops_are_plain():
    for module in SOURCES:
        if layer(module) in PURE:
            assert not third_party(TREES[module]) & {"flax", "ml_collections"}, module


def test_long_functions_say_why():
    long = []
    for module, path in SOURCES.items():
        lines = path.read_text("utf-8").splitlines()
        for function in functions(TREES[module]):
            length = function.end_lineno - function.lineno + 1
            if length > MAX_LINES and "# long:" not in lines[function.lineno - 1]:
                long.append(f"{module}.{function.name}: {length} lines")
    assert not long, f"more than {MAX_LINES} lines without a '# long: reason' on the def line"


def test_names_in_annotations_exist():
    """Neither ruff nor mypy looks: the shapes of jaxtyping are names that are not there."""
    unknown = {
        name: found
        for name, tree in TREES.items()
        if (found := names_in_annotations(tree) - bound_names(tree) - set(dir(builtins)))
    }
    assert not unknown


def names_in_annotations(tree: ast.AST) -> set[str]:
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    inside = (name for one in found if one is not None for name in ast.walk(one))
    return {name.id for name in inside if isinstance(name, ast.Name)}


def bound_names(tree: ast.AST) -> set[str]:
    """Everything that a module gives a name to, at any depth."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def test_a_missing_name_in_an_annotation_is_seen():
    tree = ast.parse(
        "import a\nclass B: ...\ndef f(x: a.C, y: list[B], z: 'Q') -> D: ...\nw: E = 1"
    )
    assert names_in_annotations(tree) - bound_names(tree) - set(dir(builtins)) == {"D", "E"}
