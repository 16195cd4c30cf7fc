"""Code that all experiments share: command line, result folder and progress.

An experiment is a frozen dataclass of options and a function that takes it:

    def run(options: Options) -> None:
        results = Results(options.out)  # first, to fail early if it is not writable
        with Progress("training", options.epochs) as progress:
            ...
            progress.update(epoch, loss=loss)
        results.metrics({"test_accuracy": accuracy})
        results.config(options)
        results.manifest(seed=options.seed, digests={"data": dataset.digest()})

    if __name__ == "__main__":
        sys.exit(main(run, Options))

Exit codes: 0 success, 1 the run failed, 2 wrong command line, 3 missing data, 4 damaged
checkpoint or weight file, 130 interrupted. Matplotlib is imported only to draw.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib.metadata
import importlib.resources
import inspect
import io
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import jax
import numpy as np
import rich.console
import rich.progress
import tyro
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

import zfnet_jax
from zfnet_jax.arch import Architecture, Conv
from zfnet_jax.data import Dataset, load_cifar10, make_shapes
from zfnet_jax.files import DamagedFileError, DataNotFoundError
from zfnet_jax.weights import Pretrained, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Options = TypeVar("Options")


class UsageError(ValueError):
    """The command line asks for something impossible; the message is one line."""


# The command line.


def main(
    run: Callable[[Options], None],
    options: type[Options],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run the experiment and report a failure in one line.

    A ValueError raised by the library names an argument, so it counts as a wrong
    command line. An unexpected exception is a bug and keeps its traceback.

    Args:
        run: The experiment.
        options: A dataclass. Its fields are the options, their docstrings the help.
        argv: Arguments without the program's name; None takes those of this process.

    Returns:
        The exit code: 0 success, 1 the run failed (a loss that is not finite, no space,
        no memory), 2 wrong command line, 3 missing data, 4 damaged checkpoint or weight
        file, 130 interrupted.
    """
    try:
        parsed = _parse(options, argv)
        if parsed is not None:
            run(parsed)
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except Exception as error:
        code, message = _explain(error)
        if code is None:
            raise
        return _fail(code, message)
    return 0


@contextlib.contextmanager
def silent_decoders() -> Iterator[None]:
    """Suppress what libtiff writes to stderr about a damaged file."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _fail(code: int, message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
    return code


def command() -> str:
    """The command line of this process, without the paths of this machine.

    `--resume` is left out, so a resumed run equals one that was not interrupted.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    return shlex.join([*_program().split(), *arguments])


def _program() -> str:
    """Name of the program as typed, without the paths of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else Path(sys.argv[0]).name


def _parse(options: type[Options], argv: Sequence[str] | None) -> Options | None:
    """The options, or None when help was asked for and shown."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                options,
                args=argv,
                prog=_program(),
                description=inspect.getdoc(sys.modules[options.__module__]),
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        message = _unbox(stderr.getvalue())
        # The rest names the option, or is a message of the dataclass itself.
        message = message.removeprefix(f"Error parsing {options.__name__}: ")
        message = message.removeprefix("Error parsing ")
        raise UsageError(f"{message} (--help lists the options)") from None


def _unbox(box: str) -> str:
    """The message in a box drawn by tyro, which has no one-line form.

    The box contains a title and sections: the message, similar options if there are
    any, a pointer to the help. It has borders only where the output is UTF-8.
    """
    sections: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        line = line.strip(" │")
        if re.fullmatch("╭.*╮|[─-]{3,}", line):
            sections.append([])
        elif line:
            sections[-1].append(line)
    _, message, *rest = sections if len(sections) > 1 else [[], *sections]
    text = " ".join(message).partition(" Got errors:")[0]
    if rest and rest[0][:1] == ["Perhaps you meant:"]:
        text += f"; perhaps you meant {rest[0][1]}"
    return text


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def _explain(error: Exception) -> tuple[int | None, str]:
    """Exit code and message of a failure; no code for a bug."""
    # Imported on failure only: training takes long to import.
    from zfnet_jax.training import NonFiniteLossError

    for kind, code in (
        (UsageError, 2),
        (DataNotFoundError, 3),
        (DamagedFileError, 4),
        (NonFiniteLossError, 1),
    ):
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, ValueError) and _origin(error) == "zfnet_jax":
        return 2, str(error)
    causes = list(_causes(error))
    for cause in causes:
        # Libraries that write in the background pass on only the system's message.
        if (isinstance(cause, OSError) and cause.errno in _NO_SPACE) or any(
            os.strerror(number) in str(cause) for number in _NO_SPACE
        ):
            name = getattr(cause, "filename", None)
            file = f" for {name}" if name else ""
            return 1, f"no space left{file}; free some or choose another --out"
    if isinstance(error, MemoryError) or any(
        isinstance(cause, jax.errors.JaxRuntimeError)
        and "RESOURCE_EXHAUSTED" in str(cause)
        for cause in causes
    ):
        return 1, "out of memory; choose a smaller --batch-size or a smaller model"
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        return 1, f"{file}{error.strerror or error}"
    return None, ""


def _origin(error: Exception) -> str:
    """Top-level package of the code that raised."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return frames[-1][0].f_globals.get("__name__", "").partition(".")[0]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# The result folder.


class Results:
    """The folder of one run: figures, metrics.json, config.json and manifest.json.

    A file appears complete or not at all. The same seed on the same machine writes the
    same bytes, apart from measured times.

    Attributes:
        path: The folder; created if necessary.
    """

    def __init__(self, out: str | Path) -> None:
        """Create the folder, check that it is writable, and start the clock.

        Raises:
            UsageError: The folder cannot be created or written.
            OSError: The disk is full.
        """
        self.path = Path(out)
        self._start = time.perf_counter()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Large enough to need a block of the disk.
            self.write(".probe", bytes(1 << 16)).unlink()
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise
            reason = error.strerror
            if isinstance(error, FileExistsError):
                reason = "it is a file"
            raise UsageError(
                f"--out {out} cannot be written ({reason}); choose another folder"
            ) from error

    def write(self, name: str, data: bytes) -> Path:
        """Write one file of the folder atomically and return its path."""
        path = self.path / name
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                part.unlink()
            if isinstance(error, OSError):
                # A failing write() does not name its file.
                error.filename = str(path)
            raise
        return path

    def json(self, name: str, value: object) -> Path:
        """Write a value as strict JSON with sorted keys.

        Args:
            name: Name of the file.
            value: Mappings with string keys, sequences, dataclasses, NumPy and JAX
                arrays, paths, strings, numbers, booleans and None, nested in any way.

        Raises:
            ValueError: A number is not finite; the message says which.
            TypeError: JSON cannot represent a value; the message says which.
        """
        text = json.dumps(
            _plain(value, name), indent=2, sort_keys=True, ensure_ascii=False
        )
        return self.write(name, f"{text}\n".encode())

    def figure(self, name: str, figure: Figure) -> None:
        """Write a figure as NAME.png and, if it has no pictures, also as NAME.pdf."""
        from zfnet_jax import viz

        with tempfile.TemporaryDirectory(dir=self.path, prefix=".") as folder:
            for file in viz.save_figure(figure, Path(folder) / f"{name}.png"):
                self.write(file.name, file.read_bytes())

    def metrics(self, metrics: Mapping[str, object]) -> None:
        """Write metrics.json, the measured values."""
        self.json("metrics.json", metrics)

    def config(self, options: object) -> None:
        """Write config.json, the options of the run with their defaults."""
        self.json("config.json", options)

    def manifest(self, *, seed: int, digests: Mapping[str, str]) -> None:
        """Write manifest.json, the origin of the run, after all other files.

        Args:
            seed: The seed of the run.
            digests: sha256, in hex, of each input: data, weights.
        """
        device = jax.devices()[0]
        packages = ("flax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
        versions = {name: importlib.metadata.version(name) for name in packages}
        self.json(
            "manifest.json",
            {
                "command": command(),
                "device": {
                    "count": jax.device_count(),
                    "kind": device.device_kind,
                    "platform": device.platform,
                },
                "digests": digests,
                "git_commit": _git_commit(Path(__file__)),
                "seed": seed,
                "versions": {
                    **versions,
                    "python": platform.python_version(),
                    "zfnet_jax": zfnet_jax.__version__,
                },
                "wall_seconds": round(time.perf_counter() - self._start, 3),
            },
        )


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold")
        return value
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if strangers := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{where} has the key {strangers[0]!r}, not a string")
        return {key: _plain(item, f"{where}: {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(value.tolist(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def _git_commit(file: Path) -> str | None:
    """Commit of the checkout that tracks a file, with `-dirty` after changes."""
    answer = None
    for command in (
        # An installed copy may be inside the checkout of another project.
        ["ls-files", "--error-unmatch", file.name],
        ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    ):
        try:
            answer = subprocess.run(
                ["git", "-C", str(file.parent), *command],
                capture_output=True,
                check=True,
                text=True,
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
    return answer


# Inputs.

_SIZES = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "shapes": {"train": 10_000, "test": 2_000},
}


def load_dataset(
    name: Literal["cifar10", "shapes"],
    split: Literal["train", "test"],
    data_dir: Path | None = None,
    limit: int | None = None,
) -> Dataset:
    """One split of a dataset, cut to its first `limit` images."""
    count = _SIZES[name][split]
    if name == "cifar10":
        return load_cifar10(split, data_dir, limit)
    return make_shapes(min(count, limit or count), seed=0 if split == "train" else 1)


def trained_on(net: Pretrained) -> Literal["cifar10", "shapes"]:
    """The dataset a network was trained on; cifar10 if its file does not say."""
    return "shapes" if net.metadata.get("dataset") == "shapes" else "cifar10"


def load_network(weights: str) -> Pretrained:
    """A shipped network, or one from the `weights.safetensors` of a training run."""
    try:
        return load(weights)
    except FileNotFoundError as error:
        raise DataNotFoundError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """Options of an experiment on a trained network and a dataset."""

    weights: str = "zfnet32-cifar10"
    """A shipped name, or the weights.safetensors of a training run."""
    dataset: Literal["cifar10", "shapes"] | None = None
    """Source of the images; by default what the network was trained on."""
    data_dir: Path | None = None
    """Folder of prepared tensorflow-datasets; else $TFDS_DATA_DIR or its default."""
    limit: int | None = None
    """Use only the first N images."""

    def network(self) -> Pretrained:
        """The network of --weights."""
        return load_network(self.weights)

    def images_for(
        self,
        net: Pretrained,
        count: int | None = None,
        split: Literal["train", "test"] = "test",
    ) -> Dataset:
        """The first images; their classes need not be those of the network.

        Args:
            net: The network.
            count: Number of images that --images asks for; --limit may reduce it. None
                takes all, or --limit.
            split: Which split of the dataset.
        """
        name = self.dataset or trained_on(net)
        if self.limit is not None and (count is None or count > self.limit):
            flag, count = "limit", self.limit
        else:
            flag = "images"
        dataset = load_dataset(name, split, self.data_dir, count)
        enough(flag, count, len(dataset))
        return dataset

    def known_images(self, net: Pretrained, count: int | None = None) -> Dataset:
        """The first test images, as in `images_for`, of the network's own classes."""
        dataset = self.images_for(net, count)
        if dataset.class_names != net.class_names:
            raise UsageError(
                f"--weights {self.weights} has other classes than {dataset.name}: "
                "choose another --dataset"
            )
        return dataset

    def digests(self, dataset: Dataset) -> dict[str, str]:
        """Digests of the experiment's inputs, for its manifest."""
        return {"data": dataset.digest(), "weights": weights_digest(self.weights)}


def mean_picture(net: Pretrained) -> np.ndarray:
    """The mean image, uint8 [h, w, 3], at the size that the network sees."""
    mean = np.rint(net.preprocess.mean).astype(np.uint8)
    return net.preprocess.pictures(mean[None])[0]


def enough(flag: str, asked: int | None, there: int) -> None:
    """Refuse an option that asks for more images than there are."""
    if asked is not None and asked > there:
        raise UsageError(f"--{flag} {asked}: there are only {counted(there, 'image')}")


def at_least(least: int, options: object, *names: str) -> None:
    """Refuse options that are given and below a number."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} must be {least} or more, not {value}")


def chosen_layers(
    arch: Architecture, text: str | None, default: type | tuple[type, ...] = Conv
) -> list[str]:
    """Layers named as in conv1,conv3, in forward order; by default all of a kind."""
    order = [layer.name for layer in arch.layers]
    if text is None:
        return [layer.name for layer in arch.layers if isinstance(layer, default)]
    return sorted(set(named_layers(arch, text)), key=order.index)


def named_layers(arch: Architecture, text: str) -> list[str]:
    """Layers named as in conv1,fc7, in the order given."""
    return [arch.layer(name.strip()).name for name in text.split(",")]


def counted(number: int, what: str) -> str:
    """A number with its noun, as in "1 layer" and "2 layers"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def numbers(flag: str, text: str | None) -> list[int]:
    """Whole numbers as in 3,17; none if there is no text."""
    if text is None:
        return []
    try:
        values = [int(number) for number in text.split(",")]
    except ValueError:
        values = [-1]
    if min(values) < 0:
        raise UsageError(f"{flag} {text}: give whole numbers, as in 3,17")
    return values


def named_units(
    arch: Architecture, layers: Sequence[str], text: str | None
) -> list[int]:
    """Units of a single layer, as `--units` names them; none if there is no text."""
    units = numbers("--units", text)
    if units and len(layers) != 1:
        raise UsageError("--units needs exactly one --layers")
    width = arch.shapes()[layers[0]][-1]
    if beyond := [unit for unit in units if unit >= width]:
        raise UsageError(
            f"--units {beyond[0]}: {layers[0]} of {arch.name} has {width} units "
            f"(0 to {width - 1})"
        )
    return units


@functools.cache
def code_digest(*files: str) -> str:
    """sha256 of the code: the library and the given files of experiments."""
    library = sorted(Path(zfnet_jax.__path__[0]).rglob("*.py"))
    digest = hashlib.sha256()
    for file in (*library, *files):
        digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return digest.hexdigest()


def weights_digest(weights: str) -> str:
    """sha256 of the weight file with this shipped name or path."""
    shipped = importlib.resources.files("zfnet_jax") / "pretrained"
    file = shipped / f"{weights}.safetensors"
    path = file if file.is_file() else Path(weights)
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Progress.


class Progress:
    """Progress of a task: a bar on a terminal, lines of text elsewhere."""

    def __init__(
        self,
        label: str,
        total: int,
        *,
        start: int = 0,
        unit: str = "epoch",
        every: int = 1,
    ) -> None:
        """Describe the task; the clock starts on entering the context.

        Args:
            label: What is going on.
            total: Number of units of work.
            start: Units that are already done.
            unit: Name of a unit.
            every: Units per line of text.
        """
        self._every = max(1, every)
        self._label, self._total, self._unit = label, total, unit
        self._shown = self._first = start
        console = rich.console.Console()
        self._bar = None
        if sys.stdout.isatty() and not console.is_dumb_terminal:
            # On a narrow terminal the values wrap and the rest keeps its width.
            whole, wrapped = Column(no_wrap=True), Column(no_wrap=False)
            self._bar = rich.progress.Progress(
                TextColumn("{task.description}", markup=False, table_column=whole),
                BarColumn(bar_width=20, table_column=whole),
                MofNCompleteColumn(table_column=whole),
                TimeElapsedColumn(table_column=whole),
                TimeRemainingColumn(table_column=whole),
                TextColumn("{task.fields[values]}", markup=False, table_column=wrapped),
                console=console,
            )

    def __enter__(self) -> Self:
        """Start the clock and show the bar."""
        self._start = time.perf_counter()
        if self._bar:
            self._task = self._bar.add_task(
                self._label, total=self._total, completed=self._first, values=""
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the bar as it stands."""
        if self._bar:
            self._bar.stop()

    def update(
        self, done: float, total: int | None = None, /, **values: object
    ) -> None:
        """Show the progress, and named values beside it.

        Args:
            done: Units done in all; a fraction moves the bar within a unit.
            total: Number of units of work, as the tools of the library report it; the
                one given at first if None.
            values: Values to show; numbers with four digits, underscores as spaces.
        """
        self._total = self._total if total is None else total
        shown = "  ".join(
            f"{name.replace('_', ' ')} {_short(value)}"
            for name, value in values.items()
        )
        if self._bar:
            self._bar.update(
                self._task, completed=done, total=self._total, values=shown
            )
        elif int(done) >= min(self._shown + self._every, self._total) > self._shown:
            self._shown = int(done)
            seconds = time.perf_counter() - self._start
            line = f"{self._label} {self._unit} {self._shown}/{self._total}"
            print(
                *(part for part in (line, shown, f"{seconds:.1f} s") if part),
                sep="  ",
                flush=True,
            )


def _short(value: Any) -> str:
    return str(value) if isinstance(value, int | str) else f"{float(value):.4g}"
