"""The command line, result folder and exit codes of an experiment.

An experiment is a generator of metrics, as in `experiments/invariance.py`. Its module's
docstring is the help, its parameters are the options, and the class of its first
parameter says which options it shares with others; a parameter hides a shared option of
the same name. Exit codes: 0 success, 1 the run failed, 2 wrong command line, 3 missing
data, 4 damaged file, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import io
import os
import platform
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import docstring_parser
import jax
import numpy as np
import tyro

import zfnet_jax as zf
from experiments.progress import Progress, drop_output, say
from zfnet_jax.files import (
    DamagedFileError,
    DataNotFoundError,
    slug,
    to_json,
    write_atomically,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

Metrics = Iterator[tuple[str, Any]]
T = TypeVar("T")


class UserError(ValueError):
    """The command line asks for something impossible; the message is one line."""


# In errors of the libraries through which processes talk.
_LOST = re.compile("Gloo|NCCL|coordination service", re.IGNORECASE)
_AT_LEAST_ONE = "at least 1"
Positive = Annotated[int, _AT_LEAST_ONE]


@dataclasses.dataclass(kw_only=True)
class Run:
    """One run of an experiment: its random numbers, figures and result folder.

    Attributes:
        seed: Seed for the random draws.
        out: Folder for results, results/NAME by default. Files of the same names are
            replaced.
        dpi: Resolution of the PNG figures in dots per inch.
    """

    seed: int = 0
    out: Path | None = None
    dpi: Positive = 256

    def __post_init__(self) -> None:
        """Check the seed."""
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: give a number from 0 to 2**32 - 1")
        self.digests: dict[str, Any] = {}
        self._progress: Progress | None = None

    @property
    def path(self) -> Path:
        """The result folder."""
        assert self.out is not None
        return self.out

    @property
    def is_first(self) -> bool:
        """True for the process that prints, draws and writes."""
        return True

    def connect(self, options: Mapping[str, Any]) -> None:
        """Connect to the other processes of a run, if there are any."""

    def wait(self) -> None:
        """Wait until the other processes of a run, if there are any, also wait."""

    @functools.cached_property
    def rng(self) -> np.random.Generator:
        """The source of random numbers."""
        return np.random.default_rng(self.seed)

    def figure(self, name: str, figure: Figure) -> None:
        """Write a figure as NAME.png and NAME.pdf; NAME may contain subfolders."""
        if not self.is_first:
            return
        from zfnet_jax.viz.layout import figure_bytes

        path = self.path.joinpath(*map(slug, name.split("/")))
        path.parent.mkdir(parents=True, exist_ok=True)
        for kind in ("png", "pdf"):
            data = figure_bytes(figure, kind, self.dpi)
            write_atomically(path.with_name(f"{path.name}.{kind}"), data)

    def progress(
        self, task: str, above: Callable[[], RenderableType] | None = None
    ) -> Progress:
        """Show a task's progress: call the result with (done, total, **values)."""
        self.end_progress()
        self._progress = Progress(task, above)
        return self._progress

    def end_progress(self) -> None:
        """Leave the progress of the last task as it stands."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def track(self, task: str, items: Collection[T]) -> Iterator[T]:
        """Go through items and show how many are done."""
        progress = self.progress(task)
        for done, item in enumerate(items, 1):
            yield item
            progress(done, len(items))


# The command line.


def main(experiment: Callable[..., Metrics], argv: Sequence[str] | None = None) -> int:
    """Run an experiment from the command line and return its exit code.

    Args:
        experiment: The generator of metrics.
        argv: Arguments without the program's name; None takes those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a help text may not be ASCII
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run, options = None, {}
    try:
        run, options = parse(experiment, argv)
        _execute(experiment, run, options)
        run.wait()
    except KeyboardInterrupt:
        takes_resume = run is not None and "resume" in {**options, **vars(run)}
        hint = "; add --resume to continue" if takes_resume else ""
        return _fail(130, f"interrupted{hint}")
    except BrokenPipeError:  # the reader of a help text has seen enough
        drop_output(sys.stdout)
        return 0
    except Exception as error:
        given = {} if run is None else {**vars(run), **options}
        code, message = _explain(error, given)
        if code is None:
            raise
        return _fail(code, message)
    finally:
        if run is not None:
            run.end_progress()
    return 0


def parse(
    experiment: Callable[..., Metrics], argv: Sequence[str] | None
) -> tuple[Run, dict[str, Any]]:
    """Parse the command line of an experiment: its run and its own options."""
    hints = get_type_hints(experiment, include_extras=True)
    (first, *others) = inspect.signature(experiment).parameters.values()
    kind: type[Run] = hints[first.name]
    names = {option.name for option in others}
    shared = [x for x in dataclasses.fields(kind) if x.init and x.name not in names]
    hints = get_type_hints(kind, include_extras=True) | hints
    texts = _read_help(kind) | _read_help(experiment)
    parameters = [
        _describe(option.name, hints[option.name], option.default, texts[option.name])
        for option in (*others, *shared)
    ]

    def collect(**values: Any) -> dict[str, Any]:
        return values

    collect.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    collect.__annotations__ = {p.name: p.annotation for p in parameters}
    values = tyro.cli(
        collect,
        args=argv,
        prog=_program(),
        description=_join_lines(sys.modules[experiment.__module__].__doc__ or ""),
        config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
    )
    for parameter in parameters:
        name, value = parameter.name, values[parameter.name]
        if value == () != parameter.default:
            raise UserError(f"{flag(name)}: give at least one value")
        words = value if isinstance(value, tuple) else (value,)
        if _AT_LEAST_ONE in str(hints[name]) and any(
            x is not None and x < 1 for x in words
        ):
            raise UserError(
                f"{spell(flag(name), *words)}: give a whole number of at least 1"
            )
    run = kind(**{f.name: values.pop(f.name) for f in shared})
    if run.out is None:
        run.out = Path("results") / experiment.__name__
    return run, values


def flag(name: str) -> str:
    """Write the name of an option as on a command line."""
    return f"--{name.replace('_', '-')}"


def spell(name: str, *values: object) -> str:
    """Write an option and its values as on a command line."""
    if not values or values[0] is None:
        return f"no {name}"
    return " ".join([name, *map(str, values)])


def _join_lines(text: str) -> str:
    """Join the lines of each paragraph; indented ones stay as they are."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        x if x.startswith(" ") else " ".join(x.split()) for x in paragraphs
    )


def _read_help(documented: Any) -> dict[str, str]:
    """Read the texts of parameters or attributes, each on one line."""
    kinds = (
        reversed(documented.__mro__) if inspect.isclass(documented) else [documented]
    )
    return {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for kind in kinds
        for parameter in docstring_parser.parse(kind.__doc__ or "").params
    }


def _describe(name: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    hint: Any = {"help_behavior_hint": ""} if default in (None, ()) else {}
    annotation = Annotated[kind, tyro.conf.arg(help=text, **hint)]
    return inspect.Parameter(name, keyword, default=default, annotation=annotation)


def _execute(
    experiment: Callable[..., Metrics], run: Run, options: dict[str, Any]
) -> None:
    """Run an experiment and write what it measured."""
    start = time.perf_counter()
    fields = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    config = {**fields, **options}
    run.connect(config)
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax raises either
        wanted = jax.config.values["jax_platforms"]
        raise UserError(f"JAX_PLATFORMS={wanted}: there is no such device") from error
    # At the first exchange Gloo waits for only 30 s, and later for as long as it takes.
    run.wait()
    if run.is_first:
        _create_folder(run.path)
    metrics = dict(experiment(run, **options))
    run.end_progress()
    if not run.is_first:
        return
    packages = ("flax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")
    manifest = {
        "command": command(),
        "device": {
            "count": len(devices),
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
        },
        "digests": run.digests,
        "git_commit": _git_commit(),
        "seed": config["seed"],
        "versions": {
            **{name: importlib.metadata.version(name) for name in packages},
            "python": platform.python_version(),
            "zfnet_jax": zf.__version__,
        },
        "wall_seconds": round(time.perf_counter() - start, 3),
    }
    files = {"metrics": metrics, "config": config, "manifest": manifest}
    for name, value in files.items():
        write_atomically(run.path / f"{name}.json", f"{to_json(value)}\n")
    say(f"results in {run.path}  (file://{run.path.resolve()})")


def _create_folder(path: Path) -> None:
    """Create the result folder, or say why it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / ".probe", bytes(1 << 16)).unlink()
    except OSError as error:
        raise UserError(
            f"--out {path} cannot be written ({error.strerror}): choose another folder"
        ) from error


def command() -> str:
    """Write the command line of this process, without the folders of this machine.

    `--resume` is left out, so a resumed run equals one that was not interrupted.
    """
    words, arguments = iter(sys.argv[1:]), []
    for word in words:
        name, equals, _ = word.replace("_", "-").partition("=")
        if name in ("--data-dir", "--out"):
            if not equals:
                next(words, None)
        elif word != "--resume":
            arguments.append(word)
    return shlex.join([*_program().split(), *arguments])


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else Path(sys.argv[0]).name


def _git_commit() -> str | None:
    """Commit of this checkout, with `-dirty` after changes."""
    import subprocess

    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(describe, cwd=root, capture_output=True, text=True)
    return answer.stdout.strip() or None


def _explain(error: Exception, options: Collection[str]) -> tuple[int | None, str]:
    """Exit code and message of a failure; no code for a fault of the program."""
    from zfnet_jax.training import NonFiniteLossError

    match error:
        case DataNotFoundError():
            return 3, str(error)
        case DamagedFileError():
            return 4, str(error)
        case UserError():
            return 2, str(error)
        case ValueError() if _origin(error) in ("zfnet_jax", "experiments"):
            return 2, _name_flag(str(error), options)
        case NonFiniteLossError():
            return 1, str(error)
        case ImportError() if "pip install" in str(error):
            return 1, str(error)
        case OSError():
            name = f"{error.filename}: " if error.filename else ""
            return 1, f"{name}{error.strerror or error}"
    if jax.distributed.is_initialized() and _LOST.search(str(error)):
        return 1, "the connection to another process broke: see its message"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return 1, "out of memory: choose a smaller --batch-size, --limit or model"
    return None, ""


def _name_flag(message: str, options: Collection[str]) -> str:
    """Replace the argument and values that a message begins with by the option."""
    match = re.fullmatch(r"(\w+) (\[.*?\]|\S+)(: .*)", message)
    if match is None or match[1] not in options:
        return message
    values = match[2].strip("[]").replace(",", "")
    return f"{flag(match[1])} {values}{match[3]}"


def _origin(error: Exception) -> str:
    """Top-level package of the innermost Python frame of an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0]


def _fail(code: int, message: str) -> int:
    say("error:", " ".join(message.split()), file=sys.stderr)
    if jax.distributed.is_initialized():
        # At exit jax would wait for the other processes.
        os._exit(code)
    return code
