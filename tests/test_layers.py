"""Imports go down only: every file keeps to the floors of docs/design.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room is a file or a folder of zfnet_jax, or a folder that uses it. It may import the
# rooms of lower floors and nothing else of the project; within a folder all is free.
FLOORS = {
    "arch": 0,
    "relu_rules": 0,
    "torch_file": 0,
    "data": 0,
    "ops": 0.5,  # takes its layers as arch's specifications
    "checkpoint": 1,  # knows files and arrays only; weights.py shares its error
    "model": 1,
    "deconvnet": 2,
    "attribution": 2,
    "networks": 1.5,
    "weights": 2,
    "training": 3,
    "analysis": 3,
    "viz": 4,
    "gallery": 4.5,  # shows pictures as viz does
    "zfnet_jax": 5,  # __init__.py, which re-exports
    "experiments": 6,
    "benchmarks": 7,
    "tests": 8,
}

# Rooms outside the library are imported by their own name.
OUTSIDE = ("experiments", "benchmarks", "tests")


def rooms() -> dict[Path, str]:
    """Every file of the project and the room it is in."""
    library = ROOT / "zfnet_jax"
    files = {}
    for file in library.rglob("*.py"):
        name = file.relative_to(library).parts[0].removesuffix(".py")
        files[file] = "zfnet_jax" if name == "__init__" else name
    for folder in OUTSIDE:
        files |= dict.fromkeys((ROOT / folder).rglob("*.py"), folder)
    return files


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, at any depth.

    Args:
        tree: The syntax of the file.
        module: Its name; a package's ends in `.__init__`.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield node.lineno, alias.name
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    parents = module.split(".")[: -node.level]
                    base = ".".join([*parents, base]).removesuffix(".")
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(function).endswith(("import_module", "__import__")):
                    yield node.lineno, name


def room_of(name: str) -> str | None:
    """The room that an imported name is from; None if it is not of this project."""
    package, _, rest = name.partition(".")
    if package in OUTSIDE:
        return package
    if package != "zfnet_jax":
        return None
    first = rest.partition(".")[0]
    # `from zfnet_jax import ZFNET` asks __init__.py, `… import arch` the room itself.
    return first if first in FLOORS or is_room(first) else "zfnet_jax"


def is_room(name: str) -> bool:
    path = ROOT / "zfnet_jax" / name
    return bool(name) and (path.is_dir() or path.with_suffix(".py").is_file())


def upward(source: str, module: str, room: str) -> list[str]:
    """Every import of a file that does not go down."""
    faults = []
    for line, name in imported(ast.parse(source), module):
        target = room_of(name)
        if target is None or target == room:
            continue
        if target not in FLOORS:
            faults.append(f"{module}:{line} imports {name}, which has no floor")
        elif FLOORS[target] >= FLOORS[room]:
            faults.append(
                f"{module}:{line} on floor {FLOORS[room]} imports {name} "
                f"on floor {FLOORS[target]}"
            )
    return faults


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def test_every_file_has_a_floor():
    homeless = sorted(
        module_of(file) for file, room in rooms().items() if room not in FLOORS
    )
    assert not homeless, f"give a floor in FLOORS to {', '.join(homeless)}"


def test_imports_go_down_only():
    faults = [
        fault
        for file, room in rooms().items()
        if room in FLOORS
        for fault in upward(file.read_text(encoding="utf-8"), module_of(file), room)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops", "from zfnet_jax import model"),
        ("ops", "from zfnet_jax.model import ConvNet"),
        ("ops", "import zfnet_jax.model"),
        ("ops", "import zfnet_jax.model as m"),
        ("ops", "import numpy, zfnet_jax.model"),
        ("ops", "from . import model"),
        ("ops", "from .model import ConvNet"),
        ("ops", "def f():\n    from zfnet_jax import model"),
        ("ops", "class A:\n    def f(self):\n        import zfnet_jax.model"),
        ("ops", "if TYPE_CHECKING:\n    from zfnet_jax.model import ConvNet"),
        ("ops", "import importlib\nimportlib.import_module('zfnet_jax.model')"),
        ("ops", "__import__('zfnet_jax.model')"),
        ("relu_rules", "from zfnet_jax import arch"),  # the same floor is not below
        ("model", "import zfnet_jax as zf"),
        ("model", "from zfnet_jax import ZFNET"),
        ("data.cifar10", "from ..model import ConvNet"),
        ("data.__init__", "from .. import training"),
        ("training", "from experiments import common"),
        ("training", "import benchmarks.step"),
    ],
)
def test_a_planted_upward_import_is_caught(module, source):
    assert upward(source, f"zfnet_jax.{module}", module.split(".")[0])


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model", "from zfnet_jax import arch, ops"),
        ("model", "from .arch import Conv"),
        ("training", "def f():\n    from .data import Dataset"),
        ("data.__init__", "from .cifar10 import load_cifar10"),
        ("data.shapes", "from zfnet_jax.data.cifar10 import load_cifar10"),
        ("ops", "import jax.numpy as jnp\nimport importlib\nfrom math import pi"),
        ("ops", "importlib.import_module(name)"),
    ],
)
def test_an_import_that_goes_down_is_allowed(module, source):
    assert upward(source, f"zfnet_jax.{module}", module.split(".")[0]) == []


def test_a_file_without_a_floor_is_caught(monkeypatch):
    monkeypatch.delitem(FLOORS, "arch")
    with pytest.raises(AssertionError, match=r"zfnet_jax\.arch"):
        test_every_file_has_a_floor()
    assert upward("from zfnet_jax import arch", "zfnet_jax.model", "model")


def test_every_folder_has_a_floor():
    folders = {file.parent.name for file in ROOT.glob("*/*.py")}
    assert folders <= {"zfnet_jax", *OUTSIDE}


def test_architectures_need_no_jax():
    for _, name in imported(
        ast.parse((ROOT / "zfnet_jax/arch.py").read_text()), "zfnet_jax.arch"
    ):
        assert name.partition(".")[0] in {
            "__future__",
            "collections",
            "dataclasses",
            "itertools",
            "math",
            "typing",
        }


def test_figures_know_no_model():
    files = [*(ROOT / "zfnet_jax/viz").glob("*.py")]
    assert files
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        rooms = {room_of(name) for _, name in imported(tree, module_of(file))}
        assert rooms <= {None, "viz"}, file.name


def test_the_package_only_re_exports():
    tree = ast.parse((ROOT / "zfnet_jax/__init__.py").read_text(encoding="utf-8"))
    docstring, *rest = tree.body
    assert isinstance(docstring, ast.Expr)
    for node in rest:
        assert isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)
        if isinstance(node, ast.Assign):
            assert ast.unparse(node.targets[0]) in ("__all__", "__version__")
