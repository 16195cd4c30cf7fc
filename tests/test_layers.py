"""Imports go up one list only: the layout of docs/design.md."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module is a file or a folder of zfnet_jax, or a folder that uses it. It may import
# what stands before it; within a folder everything may be imported.
ORDER = """
    arch results files torch_file data checkpoint viz
    cpu ops model
    tracing relu_audit relu_rules receptive_fields layers
    adapters engines networks weights
    windows deconvnet crops projections attribution metrics
    recipes training analysis galleries
    zfnet_jax experiments tests benchmarks
""".split()
RANK = {name: rank for rank, name in enumerate(ORDER)}

# Modules outside the library are imported by their own name.
OUTSIDE = ("experiments", "benchmarks", "tests")


def modules() -> dict[Path, str]:
    """Every file of the project and the module it belongs to."""
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


def module_of(name: str) -> str | None:
    """The module that an imported name is from; None outside this project."""
    package, _, rest = name.partition(".")
    if package in OUTSIDE:
        return package
    if package != "zfnet_jax":
        return None
    first = rest.partition(".")[0]
    # `from zfnet_jax import ZFNET` asks __init__.py, `… import arch` the module itself.
    return first if first in RANK or is_module(first) else "zfnet_jax"


def is_module(name: str) -> bool:
    path = ROOT / "zfnet_jax" / name
    return bool(name) and (path.is_dir() or path.with_suffix(".py").is_file())


def list_faults(source: str, path: str, own: str) -> list[str]:
    """Every import of a file of something that stands after it."""
    faults = []
    for line, name in imported(ast.parse(source), path):
        target = module_of(name)
        if target is None or target == own:
            continue
        if target not in RANK:
            faults.append(f"{path}:{line} imports {name}, which is not in ORDER")
        elif RANK[target] >= RANK[own]:
            faults.append(f"{path}:{line} imports {name}, which stands after it")
    return faults


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def test_every_file_is_in_the_order():
    missing = sorted(dotted(file) for file, own in modules().items() if own not in RANK)
    assert not missing, f"add to ORDER: {', '.join(missing)}"


def test_imports_go_up_the_list_only():
    faults = [
        fault
        for file, own in modules().items()
        if own in RANK
        for fault in list_faults(file.read_text(encoding="utf-8"), dotted(file), own)
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
        ("relu_audit", "from zfnet_jax import relu_rules"),
        ("model", "import zfnet_jax as zf"),
        ("model", "from zfnet_jax import ZFNET"),
        ("data.cifar10", "from ..model import ConvNet"),
        ("data.__init__", "from .. import training"),
        ("training", "from experiments import common"),
        ("training", "import benchmarks.step"),
    ],
)
def test_a_planted_import_is_caught(module, source):
    assert list_faults(source, f"zfnet_jax.{module}", module.split(".")[0])


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
def test_other_imports_are_allowed(module, source):
    assert list_faults(source, f"zfnet_jax.{module}", module.split(".")[0]) == []


def test_every_folder_is_in_the_order():
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
            "re",
            "typing",
        }


def test_figures_know_no_model():
    files = [*(ROOT / "zfnet_jax/viz").glob("*.py")]
    assert files
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        used = {module_of(name) for _, name in imported(tree, dotted(file))}
        assert used <= {None, "viz"}, file.name


def test_the_package_only_re_exports():
    tree = ast.parse((ROOT / "zfnet_jax/__init__.py").read_text(encoding="utf-8"))
    docstring, *rest = tree.body
    assert isinstance(docstring, ast.Expr)
    for node in rest:
        match node:
            case ast.Assign():
                assert ast.unparse(node.targets[0]) in ("__all__", "__version__")
            case ast.FunctionDef():
                assert node.name == "__getattr__"
            case ast.If():
                assert ast.unparse(node.test) == "TYPE_CHECKING"
            case _:
                assert isinstance(node, ast.Import | ast.ImportFrom)
