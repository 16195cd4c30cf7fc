"""Every command and every Python block of the README and the documentation runs.

Commands run in this process on a small network, with the smallest sizes. A block after
the comment `<!-- not run: REASON -->` is not executed; its commands are still parsed.
Notebooks are executed when the documentation is built.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro
from matplotlib.image import imread
from PIL import Image
from safetensors.numpy import save_file

import zfnet_jax as zf
from experiments import harness, prepare_images, train_cifar10, train_imagenet
from tests.data import labeled_case
from tests.experiments.test_train_imagenet import TINY
from tests.networks import SMALL, import_keras, random_tensors, save
from zfnet_jax.arch import ContrastNorm
from zfnet_jax.data import make_shapes
from zfnet_jax.imagenet.plain import PlainNetwork
from zfnet_jax.imagenet.registry import PUBLIC, PublicNetwork

ROOT = Path(__file__).parents[1]
SHIPPED = {x.stem for x in (ROOT / "zfnet_jax/pretrained").glob("*.safetensors")}

# Programs other than this project's, and why they are not run.
OTHER = {
    "cd": "goes into the folder that was cloned",
    "docker": "needs containers",
    "docs.figures": "takes minutes; tests/test_figures.py",
    "git": "needs the network",
    "jupytext": "needs the docs extra",
    "pip": "installs packages",
    "pre-commit": "needs the dev extra",
    "pytest": "these tests",
    "sphinx-build": "the checks build the documentation",
    "tensorboard": "is a server",
    "uv": "installs packages",
}
# Slow commands. Where tests/experiments/test_NAME.py uses all options of one, it is not
# run a second time.
SLOW = {
    "ablation",
    "first_layer",
    "gallery",
    "probe",
    "quickstart",
    "sanity",
    "sweep",
    "train_cifar10",
    "train_imagenet",
    "transfer",
}
# Files that blocks of Python read, and those of the fixture that stand for them.
PLACES = {"RECORDS": "records", "RUN": "run", "results/quickstart": "run"}
# Options whose values make a command quick.
QUICK = {
    "attribution": "--limit 3 --steps 4 --shown 1",
    "correspondence": "--draws 2 --limit 4",
    "evolution": "--limit 20 --count 1 --sample 4",
    "feature_maps": "--count 4",
    "gallery": "--limit 12 --k 2 --sanity-images 2 --evolution-limit 12",
    "invariance": "--limit 2 --shown 1",
    "occlusion": "--limit 1 --shown 1",
    "predict": "--limit 2",
    "prepare_images": "--workers 0",
    "probe": "--limit 40 --penalties 0.1 --repeats 1",
    "project": "--count 1",
    "reconstruct": "--limit 2",
    "sanity": "--limit 2 --shown 1",
    "top_features": "--limit 12 --count 1",
    "train_cifar10": "--dataset shapes --limit 32 --batch-size 16 --epochs 2",
    "train_imagenet": "--data-dir records --epochs 1 --batch-size 2 --workers 0 "
    "--learning-rate 0.01",
    "transfer": "--per-class 1 --draws 1 --scratch-steps 2 --penalties 0.1",
}


class Block(NamedTuple):
    """A code block, or a command within a line of prose."""

    page: str
    line: int
    language: str
    text: str
    reason: str  # why it is not run, or ""


class Command(NamedTuple):
    """A command of this project: its module, and its options in order."""

    place: str
    module: str
    words: tuple[str, ...]
    reason: str

    @property
    def name(self) -> str:
        return self.module.rpartition(".")[2]

    def options(self) -> list[tuple[str, list[str]]]:
        """Options with their values; they may be given more than once."""
        options: list[tuple[str, list[str]]] = []
        for word in self.words:
            if word.startswith("--"):
                name, *value = word.split("=", 1)
                options.append((name, value))
            else:
                options[-1][1].append(word)
        return options


# Reading the pages.


def list_pages() -> list[Path]:
    pages = sorted((ROOT / "docs").rglob("*.md"))
    pages = [page for page in pages if "_build" not in page.parts]
    is_notebook = lambda page: "\njupytext:" in page.read_text()[:200]  # noqa: E731
    return [ROOT / "README.md", *(page for page in pages if not is_notebook(page))]


def read_blocks(path: Path) -> Iterator[Block]:
    """Code blocks, and the commands in backticks between them."""
    page, lines = str(path.relative_to(ROOT)), path.read_text().splitlines()
    # A directive may contain blocks; a comment before a block counts for it.
    directives: list[str] = []
    reason, number = "", 0
    while number < len(lines):
        line, number = lines[number], number + 1
        fence = re.match(r"\s*(`{3,}|:{3,})(.*)", line)
        if comment := re.fullmatch(r"\s*<!-- not run: (.+) -->\s*", line):
            reason = comment[1]
        elif fence is None:
            for span in re.findall("`([^`]+)`", line):
                if re.match(r"(\w+=\w+ )?python -m \w+\.[a-z_]+ ", span):
                    yield Block(page, number, "sh", span, "")
            reason = reason if not line.strip() else ""
        elif fence[1] in directives and not fence[2].strip():
            while directives.pop() != fence[1]:
                pass
        elif code := re.fullmatch(r"(?:\{code-block\})?\s*(\w+)", fence[2].strip()):
            start = number
            while lines[number].strip() != fence[1]:
                number += 1
            text = textwrap.dedent("\n".join(lines[start:number]))
            yield Block(page, start + 1, code[1], text, reason)
            number, reason = number + 1, ""
        else:
            directives.append(fence[1])


def split_commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Place and words of each command of a block."""
    number = block.line
    for text in block.text.replace("\\\n", "\\ ").splitlines():
        lexer = shlex.shlex(text.replace("\\ ", " "), posix=True, punctuation_chars="&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                yield f"{block.page}:{number}", words
                words = []
        number += 1 + text.count("\\ ")


def read_commands(pages: list[Path]) -> Iterator[Command]:
    """All commands; a program that is no module of Python's stands for its module.

    An ellipsis stands for the options of the command before it.
    """
    numbers = {"N": ("1",), "X": ("0.1",), "P": ("0.1",), "A": ("0.5",)}
    shapes = "--weights", "results/quickstart/weights.safetensors"
    rest: tuple[str, ...] = ()
    for block in (block for page in pages for block in read_blocks(page)):
        if block.language in ("sh", "bash"):
            for place, words in split_commands(block):
                while re.match(r"\w+=", words[0]):
                    words = words[1:]
                first = 2 if words[:2] == ["python", "-m"] else 0
                meanings = {**numbers, "SHAPES": shapes, "…": rest}
                options = sum((meanings.get(x, (x,)) for x in words[first + 1 :]), ())
                rest = options if first else rest
                yield Command(place, words[first], options, block.reason)


PAGES = list_pages()
ALL = list(read_commands([*PAGES, ROOT / "BENCHMARKS.md"]))
COMMANDS = [x for x in ALL if x.module.startswith("experiments.")]
BENCHMARKS = [x for x in ALL if x.module.startswith("benchmarks.")]
assert COMMANDS and BENCHMARKS


def test_pages_hold_nothing_that_is_neither_run_nor_explained():
    known = {*OTHER, "experiments"}
    rest = [x for x in ALL if x not in COMMANDS and x not in BENCHMARKS]
    assert not [x for x in rest if x.module not in known and not x.reason]
    # Blocks of other languages hold no commands.
    blocks = [block for page in PAGES for block in read_blocks(page)]
    shown = {"bibtex", "html", "json", "text", "toml", "yaml"}
    assert {block.language for block in blocks} <= {"bash", "python", "sh"} | shown


def test_options_in_prose_are_those_of_a_command():
    files = [*ROOT.glob("experiments/*.py"), *ROOT.glob("benchmarks/*.py")]
    names = set(re.findall(r"\b(\w+): ", "".join(x.read_text() for x in files)))
    for page in PAGES:
        for span in re.findall("`([^`\n]+)`", page.read_text()):
            for option in re.findall(r"(?<!\S)--([a-z-]+)", span):
                is_known = option == "help" or option.replace("-", "_") in names
                assert is_known or span.split()[0] in OTHER, f"{page.name}: {span}"


def test_the_accuracy_and_size_are_those_of_the_shipped_weights():
    (name,), text = SHIPPED, (ROOT / "README.md").read_text()
    size = (ROOT / f"zfnet_jax/pretrained/{name}.safetensors").stat().st_size
    assert f"`{name}`" in text and f"({size / 1e6:.1f} MB)" in text
    assert f"{zf.load(name).metadata['test_accuracy']:.2%}" in text


# Commands.


def find_experiment(command: Command) -> Callable[..., harness.Metrics]:
    return getattr(importlib.import_module(command.module), command.name)


@functools.cache
def read_network(name: str) -> Any:
    return PUBLIC[name].network() if name in PUBLIC else zf.load(name)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda x: x.place)
def test_commands_have_the_options_that_pages_name(command):
    if "--help" in command.words:
        with pytest.raises(SystemExit, match="0"):
            harness.parse(find_experiment(command), command.words)
        return
    run, options = harness.parse(find_experiment(command), command.words)
    boxes = options.get("boxes")
    assert boxes is None or boxes.stem.isupper() or (ROOT / boxes).exists()
    names = vars(run).get("weights")
    for name in [names] if isinstance(names, str) else names or ():
        is_name = name in PUBLIC or name in SHIPPED
        assert is_name or name.endswith((".safetensors", ".pth")) or name == "FILE"
    layers, units = options.get("layers") or (), options.get("units") or ()
    name = names or getattr(run, "default_weights", "")
    is_other = options.get("run") is not None or vars(run).get("model") is not None
    if layers and not is_other and (name in PUBLIC or name in SHIPPED):
        net = read_network(name)
        assert set(layers) <= set(net.layers)
        assert all(unit < net.layers[layers[0]].shape[-1] for unit in units)


def write_photographs(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(make_shapes(count, (40, 50)).images):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


NORMED = dataclasses.replace(
    SMALL, layers=(*SMALL.layers[:2], ContrastNorm("norm1"), *SMALL.layers[2:])
)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with everything that the values of options stand for."""
    folder = tmp_path_factory.mktemp("files")
    for seed, epoch in enumerate((1, 2, 5, 10)):
        save(folder / f"run/epochs/epoch_{epoch:04d}.safetensors", seed, NORMED)
    save(folder / "run/weights.safetensors", 3, NORMED)
    for kind in "ab":
        write_photographs(folder / "kinds" / kind)
    write_photographs(folder / "photographs")
    rows = [f"{x}.png,nose,{x},3,20,20" for x in range(3)]
    text = "\n".join(["image,part,top,left,bottom,right", *rows])
    (folder / "photographs.csv").write_text(text)
    (folder / "shapes.csv").write_text(text.replace(".png", ""))
    labeled_case.write_folders(folder / "labeled", 1)
    out = str(folder / "records")
    argv = ["--images", str(folder / "labeled"), "--out", out, "--workers", "0"]
    assert harness.main(prepare_images.prepare_images, argv) == 0
    return folder


def stand_in(command: Command, option: str, values: list[str]) -> list[str]:
    """The value of an option that is there, for one that a page names."""
    is_records, weights = values == ["RECORDS"], "run/weights.safetensors"
    match option:
        case "--image" if values == ["PHOTO"] or values[0].endswith(".jpg"):
            return ["photographs/0.png"]
        case "--image":
            return ["records" if is_records else "photographs"]
        case "--images":
            return ["labeled" if command.name == "prepare_images" else "kinds"]
        case "--run":
            return ["run"]
        case "--weights":
            return [weights]
        case "--compare" if not values[0].isdigit():
            return [weights]
        case "--model":
            return ["tests.networks:small_network"]
        case "--boxes":
            has_photographs = "--image" in command.words
            return ["photographs.csv" if has_photographs else "shapes.csv"]
        case "--keep-epochs":
            return ["1", "2"]
        case "--layers":
            return ["conv2"]
        case "--units":
            return ["0", "2"][: len(values)]
        case "--target":
            return ["star"]
        case "--dataset":
            return ["shapes"]
    return values


def shorten(command: Command) -> tuple[str, ...]:
    """The words of a command on small data, with the smallest sizes."""
    quick = Command("", "", tuple(QUICK.get(command.name, "").split()), "").options()
    options = command.options()
    # Datasets are shapes, which need no folder; the small network is the default.
    taken = {name for name, _ in quick} | {"--data-dir", "--out", "--dpi"}
    if [name for name, _ in options].count("--weights") == 1:
        taken.add("--weights")
    words: list[str] = []
    for name, values in options:
        if name not in taken:
            words += [name, *stand_in(command, name, values)]
    for name, values in quick:
        words += [name, *values]
    return tuple(words)


@functools.cache
def read_words(name: str) -> set[str]:
    """The words of the strings in the test of an experiment."""
    owner = "train_cifar10" if name == "quickstart" else name
    tree = ast.parse((ROOT / f"tests/experiments/test_{owner}.py").read_text())
    constants = (x.value for x in ast.walk(tree) if isinstance(x, ast.Constant))
    return {w for text in constants if isinstance(text, str) for w in text.split()}


def is_run_elsewhere(command: Command) -> bool:
    if {"--help", "--coordinator"} & set(command.words):
        return True  # in processes of their own
    options = {name for name, _ in command.options()} - {"--data-dir", "--out"}
    return command.name in SLOW and options <= read_words(command.name)


def list_runs() -> list[Any]:
    """Commands to run: each that differs from the others in more than its sizes."""
    runs: dict[tuple[str, ...], Command] = {}
    for command in COMMANDS:
        if not command.reason and not is_run_elsewhere(command):
            runs.setdefault((command.name, *shorten(command)), command)
    return [pytest.param(x, id=x.place) for x in runs.values()]


@pytest.mark.parametrize("command", list_runs())
def test_commands_run(command, files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setitem(train_cifar10.ARCHITECTURES, "zfnet32", SMALL)
    monkeypatch.setitem(train_imagenet.ARCHITECTURES, "zfnet", TINY)
    monkeypatch.setattr(train_cifar10, "draw", lambda *arguments: None)
    monkeypatch.setattr(train_cifar10, "write_events", lambda *arguments: None)
    weights = "run/weights.safetensors"
    monkeypatch.setattr("experiments.inputs.NetworkRun.default_weights", weights)
    words = [*shorten(command), "--out", str(tmp_path)]
    if command.name != "prepare_images":  # it draws nothing
        words += ["--dpi", "16"]
    assert harness.main(find_experiment(command), words) == 0
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.parity
@pytest.mark.parametrize("command", BENCHMARKS, ids=lambda x: x.place)
def test_benchmarks_have_the_options_that_pages_name(command):
    pytest.importorskip("torch", reason="needs the parity extra")
    module = importlib.import_module(command.module)
    tyro.cli(module.Options, args=command.words)


# Python.


def fetch_random(self: PublicNetwork) -> Path:
    """A file of the tensors of a published network, with random weights."""
    assert isinstance(self.model, PlainNetwork), "no stand-in for such a network"
    path = Path("fetched", f"{self.url.rpartition('/')[2]}.safetensors")
    path.parent.mkdir(exist_ok=True)
    save_file(random_tensors(self.model.shapes), path)
    return path


def list_python() -> list[Any]:
    """Pages to run: their blocks, and an extra without which some are left out."""
    pages = []
    for path in PAGES:
        blocks = [block for block in read_blocks(path) if block.language == "python"]
        if not blocks:
            continue
        pages.append(pytest.param(blocks, "", id=blocks[0].page))
        for extra, mark in (
            ("keras", pytest.mark.keras),
            ("parity", pytest.mark.parity),
        ):
            if any(extra in block.reason for block in blocks):
                name = f"{blocks[0].page}, {extra}"
                pages.append(pytest.param(blocks, extra, marks=mark, id=name))
    return pages


def check_calls(block: Block) -> None:
    """Check the arguments of the calls of a block that is not run."""
    for call in ast.walk(ast.parse(block.text)):
        if isinstance(call, ast.Call):
            package, _, name = ast.unparse(call.func).partition(".")
            if package == "zf" and name.isidentifier():
                names = (x.arg for x in call.keywords if x.arg)
                signature = inspect.signature(getattr(zf, name))
                signature.bind(*call.args, **dict.fromkeys(names))


@pytest.mark.parametrize(("blocks", "extra"), list_python())
def test_python_blocks_run(blocks, extra, files, tmp_path, monkeypatch):
    if extra == "keras":
        import_keras()
    if extra == "parity":
        pytest.importorskip("torch", reason="needs the parity extra")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PublicNetwork, "fetch", fetch_random)
    Path("results").mkdir()
    for name, there in PLACES.items():
        Path(name).symlink_to(files / there)
    if not any('Path("photographs"' in block.text for block in blocks):
        write_photographs(Path("photographs"))  # the page has none of its own
    namespace: dict[str, Any] = {"__name__": "page", "zf": zf}
    for block in blocks:
        if block.reason and not (extra and extra in block.reason):
            check_calls(block)
            continue
        # Empty lines in front, so that errors name the line of the page.
        source = "\n" * (block.line - 1) + block.text
        exec(compile(source, str(ROOT / block.page), "exec"), namespace)
    for file in tmp_path.glob("*.png"):
        assert imread(file).std() > 0
