"""Train with every combination of options, and compare the runs.

    python -m experiments.sweep --learning-rate 0.01 0.03 --batch-size 128 256 \\
        --seed 0 1

Every option of `experiments.train_cifar10` takes several values. The runs of their
product are trained one after another, each from its own initial weights, and compared
on validation images: 5,000 training images that are set apart, or a tenth of them. The
test images are not read, since they must not decide which values are best; the command
to measure the best values on them is printed at the end.

The result folder holds runs.csv (a row per run and epoch, with the seconds of training
so far), runs.json (the same with the curves within each epoch, and the end of each
run), sweep.png and, for each run, a folder with its weights and curves. Both files are
current after every epoch. A sweep that was interrupted continues with `--resume`, which
also takes further values; all but the seconds is as in an unbroken sweep, bit for bit.
A run whose loss is not finite is recorded as failed, and the sweep goes on.

Expected: a run takes as long as `experiments.train_cifar10`, without its figures. The
eight runs above with `--limit 2000 --epochs 1` take a few minutes on two CPU cores
and show that the command runs, and no more.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import inspect
import io
import itertools
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax
import numpy as np
from rich.table import Table

from experiments.harness import Metrics, UserError, flag, main, spell
from experiments.progress import plural, say, say_table, share
from experiments.train_cifar10 import (
    CifarRun,
    Log,
    save_weights,
    train_network,
)
from zfnet_jax.data import Dataset, load_dataset
from zfnet_jax.files import DamagedFileError, to_json, write_atomically
from zfnet_jax.results import spell_mean, spread
from zfnet_jax.train_step import check_batch_size
from zfnet_jax.training import NonFiniteLossError

# Options that are the same for all runs.
_COMMON = {"data_dir", "dpi", "keep_epochs", "out", "resume"}
# Measurements of an epoch.
_MEASURED = "train_loss train_accuracy validation_loss validation_accuracy".split()
# Those in the table on a terminal.
_SHOWN = [name for name in _MEASURED if name != "train_accuracy"]
# Means over the runs of a combination of values.
_RANKED = "validation_accuracy epochs train_seconds".split()

Options = Mapping[str, tuple[Any, ...]]


@dataclasses.dataclass
class Member:
    """A run of a sweep, as runs.json records it.

    Attributes:
        folder: Name of its folder.
        values: The value of every option that can vary; None is the recipe's.
        images: Start of the digest of its images, once they are loaded.
        history: The record of each epoch so far.
        train_seconds: Time in training steps up to the end of each of these epochs.
        result: The measurements after the last epoch, once that is over.
        error: The reason why the training failed.
    """

    folder: str
    values: dict[str, Any]
    images: str = ""
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    train_seconds: list[float] = dataclasses.field(default_factory=list)
    result: dict[str, float] | None = None
    error: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Member:
        """Read a run from runs.json."""
        member = cls(**values)
        records = [*member.history, *([member.result] if member.result else [])]
        numbers = [record[name] for record in records for name in _MEASURED]
        if not all(isinstance(x, float) for x in (*numbers, *member.train_seconds)):
            raise TypeError("the measurements are not numbers")
        epochs = [record["epoch"] for record in member.history]
        if epochs != list(range(1, len(member.train_seconds) + 1)):
            raise ValueError("the epochs are not consecutive")
        return member

    @property
    def is_over(self) -> bool:
        """True if nothing is left to train."""
        return self.result is not None or self.error is not None

    def follow(self, log: Log) -> None:
        """Take over the epochs that a log has."""
        self.history, count = log.history, len(log.history)
        earlier = self.train_seconds[: count - 1]
        self.train_seconds = earlier + [log.seconds] * (count - len(earlier))

    def summarize(self, names: Sequence[str]) -> list[str]:
        """Write the last epoch and its measurements of these names."""
        if not self.history:
            return ["" for _ in ("epoch", *names)]
        record = self.history[-1]
        return [
            str(record["epoch"]),
            *(
                f"{record[name]:.2%}" if "accuracy" in name else f"{record[name]:.4g}"
                for name in names
            ),
        ]

    def describe(self) -> str:
        """Write a line about the run."""
        if self.error:
            return f"{self.folder}  failed: {self.error}"
        if self.is_over:
            return f"{self.folder}  finished"
        names = [name.replace("_", " ") for name in ("epoch", *_MEASURED)]
        pairs = zip(names, self.summarize(_MEASURED), strict=True)
        return f"{self.folder}  {'  '.join(map(' '.join, pairs))}"


def sweep(
    run: CifarRun, keep_epochs: tuple[int, ...], **values: tuple[Any, ...] | None
) -> Metrics:
    """Train with every combination of the values, one after another.

    Args:
        resume: Keep the finished runs in --out, and continue the others.
    """
    # The recipe's value is None.
    options = {x: (None,) if y is None else y for x, y in values.items()}
    names = [x for x, y in options.items() if len(y) > 1 or x == "seed"]
    members = plan(run, options, names)
    work = list(prepare(run, members, keep_epochs))
    write_runs(run.path, members, names)
    progress = run.progress("sweep", lambda: build_table(members, names))
    for done, (member, member_run, images) in enumerate(work):
        if not member.is_over:
            report = share(progress, done, len(work))
            for _ in train_member(member_run, member, images, report):
                write_runs(run.path, members, names)
                progress.note(member.describe())
        # They are several times the size of the weights.
        shutil.rmtree(member_run.path / "checkpoints", ignore_errors=True)
    progress(len(work), len(work))
    run.end_progress()
    yield from compare(run, members, names)


def take_several() -> inspect.Signature:
    """Derive the options of a sweep: those of a training run, with several values."""
    hints = get_type_hints(CifarRun, include_extras=True)
    fields = {x.name: x for x in dataclasses.fields(CifarRun) if x.name not in _COMMON}
    # The last option varies fastest: runs that differ only in seeds follow each other.
    fields["seed"] = fields.pop("seed")
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("run", keyword, annotation=CifarRun)]
    # It depends on the recipe of each run whether it has these epochs.
    epochs = inspect.Parameter(
        "keep_epochs", keyword, default=(), annotation=hints["keep_epochs"]
    )
    parameters.append(epochs)
    for name, field in fields.items():
        kind, choices = hints[name], get_args(hints[name])
        kind = choices[0] if type(None) in choices else kind
        default = None if field.default is None else (field.default,)
        annotation = tuple[kind, ...] if default else tuple[kind, ...] | None
        parameters.append(
            inspect.Parameter(name, keyword, default=default, annotation=annotation)
        )
    return inspect.Signature(parameters)


sweep.__signature__ = take_several()  # pyright: ignore[reportFunctionMemberAccess]
sweep.__annotations__ = {
    name: parameter.annotation for name, parameter in take_several().parameters.items()
}


def plan(run: CifarRun, options: Options, names: list[str]) -> list[Member]:
    """List the runs of a sweep, with what an interrupted one left of them."""
    for name, values in options.items():
        if len(set(values)) < len(values):
            raise UserError(f"{spell(flag(name), *values)}: give each value once")
    earlier = read_runs(run, options)
    members = []
    for product in itertools.product(*options.values()):
        values = dict(zip(options, product, strict=True))
        folder = " ".join(f"{x.replace('_', '-')}={values[x]}" for x in names)
        same = (member for member in earlier if member.values == values)
        members.append(next(same, Member(folder, values)))
    return members


def read_runs(run: CifarRun, options: Options) -> list[Member]:
    """Read the runs in --out, and check that this sweep has all that were begun."""
    path = run.path / "runs.json"
    if not path.exists():
        return []
    if not run.resume:
        raise UserError(
            f"--out {run.path} holds the runs of an earlier sweep: add --resume to "
            "continue it, or choose another folder"
        )
    try:
        members = [Member.read(x) for x in json.loads(path.read_bytes())["runs"]]
        begun = [x for x in members if x.history or x.error]
        pairs = [(name, x.values[name]) for x in begun for name in options]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} is not the record of a sweep: choose another --out"
        ) from error
    for name, value in pairs:
        if value not in options[name]:
            raise UserError(
                f"{spell(flag(name), *options[name])}: {run.path} holds a run with "
                f"{spell(flag(name), value)}; keep its values, or choose another --out"
            )
    return members


def prepare(
    run: CifarRun, members: Sequence[Member], keep_epochs: tuple[int, ...]
) -> Iterator[tuple[Member, CifarRun, Dataset]]:
    """Check each run before any is trained, and give its options and its images."""
    load, compute_digest = (
        functools.cache(load_dataset),
        functools.cache(Dataset.digest),
    )
    for member in members:
        kind: Any = {"out": run.path / member.folder, "resume": True, **member.values}
        member_run = dataclasses.replace(run, keep_epochs=keep_epochs, **kind)
        images = load(member_run.dataset, "train", run.data_dir, member_run.limit)
        check_size(member_run, images)
        digest = compute_digest(images)
        if member.images not in ("", digest[:12]):
            raise UserError(
                f"training images {digest[:12]}: {run.path} holds a run with training "
                f"images {member.images}; give those, or choose another --out"
            )
        member.images = digest[:12]
        run.digests[f"{plural(len(images), 'image')} of {images.name}"] = digest
        yield member, member_run, images


def check_size(run: CifarRun, images: Dataset) -> None:
    """Refuse a run without an image to validate on, or without a possible batch."""
    count, batch_size = len(run.split(images, is_compared=True)[0]), run.plan.batch_size
    check_batch_size(run.plan, batch_size, jax.device_count())
    if count < batch_size:
        raise UserError(
            f"--batch-size {batch_size}: there are {plural(count, 'training image')}"
        )


def train_member(
    run: CifarRun, member: Member, images: Dataset, report: Callable[..., object]
) -> Iterator[None]:
    """Train a run, or continue it; yield after every epoch and when it is over."""
    from zfnet_jax.viz.training import training_curves

    images, validation = run.split(images, is_compared=True)
    final = None
    try:
        for epoch, log in train_network(run, images, validation, report):
            final = epoch
            member.follow(log)
            yield
    except NonFiniteLossError as error:
        member.error = str(error)
    else:
        assert final is not None
        member.result = {name: member.history[-1][name] for name in _MEASURED}
        save_weights(run, "weights", final, images, **member.result)
        run.figure("training_curves", training_curves(member.history))
    yield


def write_runs(path: Path, members: Sequence[Member], names: Sequence[str]) -> None:
    """Write runs.json, and runs.csv with a row per run and epoch."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["run", *names, "epoch", *_MEASURED, "train_seconds"])
    for member in members:
        values = [member.values[name] for name in names]
        for record, seconds in zip(member.history, member.train_seconds, strict=True):
            measured = [record[name] for name in ("epoch", *_MEASURED)]
            writer.writerow([member.folder, *values, *measured, round(seconds, 3)])
    write_atomically(path / "runs.csv", table.getvalue())
    write_atomically(path / "runs.json", f"{to_json({'runs': members})}\n")


def build_table(members: Sequence[Member], names: Sequence[str]) -> Table:
    """Build the table of runs, or as many around the current one as fit a terminal."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in (*names, "epoch", *_SHOWN):
        table.add_column(name.replace("_", " "), justify="right", overflow="fold")
    table.add_column(min_width=len("finished"))
    current = next((i for i, x in enumerate(members) if not x.is_over), len(members))
    fit = max(shutil.get_terminal_size().lines - 6, 1)
    start = min(max(current - fit // 2, 0), max(len(members) - fit, 0))
    for index, member in list(enumerate(members))[start : start + fit]:
        last = member.summarize(_SHOWN)
        waits = "training" if index == current else "waiting"
        state = "failed" if member.error else "finished" if member.is_over else waits
        values = [str(member.values[name]) for name in names]
        table.add_row(*values, *last, state)
    return table


def rank(members: Sequence[Member], names: Sequence[str]) -> list[dict[str, Any]]:
    """Order the combinations of values by their mean accuracy over seeds.

    Combinations of which a run failed come last.
    """
    groups: dict[tuple[Any, ...], list[Member]] = {}
    for member in members:
        key = tuple((name, member.values[name]) for name in names if name != "seed")
        groups.setdefault(key, []).append(member)
    rows = []
    for key, group in groups.items():
        ends = [
            (x.result["validation_accuracy"], len(x.history), x.train_seconds[-1])
            for x in group
            if x.result
        ]
        accuracies = [accuracy for accuracy, _, _ in ends]
        means = np.mean(ends, axis=0) if ends else [None] * 3
        row = {
            "values": dict(key),
            "runs": len(group),
            "failed": len(group) - len(ends),
            "accuracies": accuracies,
            **dict(zip(_RANKED, means, strict=True)),
            "spread": spread(accuracies) if ends else None,
        }
        rows.append(row)
    return sorted(rows, key=lambda x: (x["failed"], -(x["validation_accuracy"] or 0)))


def compare(run: CifarRun, members: Sequence[Member], names: Sequence[str]) -> Metrics:
    """Rank the values, draw the curves, and yield both."""
    failed = [member for member in members if member.error]
    if len(failed) == len(members):
        raise NonFiniteLossError(f"every run failed; the first: {failed[0].error}")
    ranking = rank(members, names)
    draw(run, members, names, ranking)
    yield "runs", len(members)
    yield "failed", {member.folder: member.error for member in failed}
    yield "ranking", ranking
    rows = [["validation accuracy", "epochs", "training time", "runs", "values"]]
    for row in ranking:
        accuracy, epochs, seconds = (row[name] for name in _RANKED)
        cells = ["failed", "", ""]
        if accuracy is not None:
            accuracy = spell_mean(accuracy, row["spread"], ".2%")
            cells = [accuracy, f"{epochs:.3g}", f"{seconds:.0f} s"]
        failed = f", {row['failed']} failed" if row["failed"] else ""
        rows.append([*cells, f"{row['runs']}{failed}", name_values(row["values"])])
    say_table(rows)
    best = next(x for x in members if ranking[0]["values"].items() <= x.values.items())
    say("measure the best values on the test images:")
    say(f"  {name_command(run, best)}")


def name_values(values: Mapping[str, Any]) -> str:
    """Write the values of a combination for a reader."""
    words = [f"{name.replace('_', ' ')} {value}" for name, value in values.items()]
    return ", ".join(words) or "all runs"


def name_command(run: CifarRun, member: Member) -> str:
    """Write the command that measures a run's values on the test images."""
    words = "python -m experiments.train_cifar10".split()
    values = {**member.values, "data_dir": run.data_dir, "seed": 0}
    for field in dataclasses.fields(CifarRun):
        value = values.get(field.name, field.default)
        if value != field.default:
            words += [flag(field.name), str(value)]
    return shlex.join(words)


def draw(
    run: CifarRun,
    members: Sequence[Member],
    names: Sequence[str],
    ranking: Sequence[Mapping[str, Any]],
) -> None:
    """Draw the curves by option, and the ranking."""
    from zfnet_jax.viz.sweep import compare_runs

    options = [name for name in names if name != "seed"] or ["seed"]
    accuracies = {}
    for row in ranking:
        failed = f" ({row['failed']} failed)" if row["failed"] else ""
        accuracies[f"{name_values(row['values'])}{failed}"] = row["accuracies"]
    figure = compare_runs(
        f"{plural(len(members), 'run')} compared on validation images",
        [member.history for member in members],
        {
            name.replace("_", " "): [str(member.values[name]) for member in members]
            for name in options
        },
        accuracies,
    )
    run.figure("sweep", figure)


if __name__ == "__main__":
    sys.exit(main(sweep))
