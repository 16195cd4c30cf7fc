"""Depth and width: every row of Table 3 of the paper, at the size of CIFAR-10.

    python -m experiments.ablation

Both of the paper's networks, adapted to 32 x 32 images (ZFNET_MINI, ALEXNET_MINI: a
quarter of the widths, layer 1 with half the stride), are trained with layers removed or
resized as in the table. All are trained alike from several seeds: Adam, dropout 0.5,
random crops and flips. For each row: the training error, without augmentation and
dropout, and the error on validation images, beside the paper's numbers, with the rank
correlation of the two orders.

Expected by default (5,000 training images, 12 epochs, 3 seeds), in 60 to 90 minutes on
two CPU cores: ZFNet 47% validation error and AlexNet 49%; wider layers are better and
narrower ones worse, as in the paper. Removed layers help, since so short a training
favors shallow networks. Finished trainings are kept in --out/runs, and a second run of
the same code continues from there. `--limit 500` takes about two minutes, of one epoch
and one seed: it shows that the command runs, and no more.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import zfnet_jax as zf
from experiments import mini
from experiments.harness import Metrics, Positive, main
from experiments.mini import TrainingRun
from experiments.progress import plural, say_table
from zfnet_jax.arch import ALEXNET_MINI, ZFNET_MINI, Architecture, ablate
from zfnet_jax.data import Dataset
from zfnet_jax.files import digest, to_json, write_atomically
from zfnet_jax.inference import evaluate
from zfnet_jax.metrics import spearman
from zfnet_jax.networks import Network
from zfnet_jax.results import spell_mean, spread


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of Table 3: a change of a network, with the paper's errors in percent.

    Widths are those of the table, divided by four.
    """

    change: str
    base: Architecture
    paper: tuple[float, float, float]
    remove: tuple[str, ...] = ()
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def arch(self) -> Architecture:
        """The network of the row."""
        return ablate(self.base, self.remove, self.widths)

    @property
    def name(self) -> str:
        """Short and unique name."""
        return f"{self.base.name.removesuffix('-mini')}: {self.change}"


_NARROW = {"fc6": 512, "fc7": 512}
_WIDE = {"fc6": 2048, "fc7": 2048}
_MAPS = {"conv3": 128, "conv4": 256, "conv5": 128}

TABLE_3 = (
    Row("none", ALEXNET_MINI, (35.1, 40.5, 18.1)),
    Row("layers 3, 4 removed", ALEXNET_MINI, (41.8, 45.4, 22.1), ("conv3", "conv4")),
    Row("layer 7 removed", ALEXNET_MINI, (27.4, 40.0, 18.4), ("fc7",)),
    Row("layers 6, 7 removed", ALEXNET_MINI, (27.4, 44.8, 22.4), ("fc6", "fc7")),
    Row(
        "layers 3, 4, 6, 7 removed",
        ALEXNET_MINI,
        (71.1, 71.3, 50.1),
        ("conv3", "conv4", "fc6", "fc7"),
    ),
    Row("layers 6, 7 of half the width", ALEXNET_MINI, (40.3, 41.7, 18.8), (), _NARROW),
    Row("layers 6, 7 of twice the width", ALEXNET_MINI, (26.8, 40.0, 18.1), (), _WIDE),
    Row("none", ZFNET_MINI, (33.1, 38.4, 16.5)),
    Row("layers 6, 7 of half the width", ZFNET_MINI, (38.2, 40.2, 17.6), (), _NARROW),
    Row("layers 6, 7 of twice the width", ZFNET_MINI, (22.0, 38.8, 17.0), (), _WIDE),
    Row("layers 3 to 5 wider", ZFNET_MINI, (18.8, 37.5, 16.0), (), _MAPS),
    Row("both of the last two", ZFNET_MINI, (10.0, 38.3, 16.9), (), {**_WIDE, **_MAPS}),
)

# Kinds of errors, in the order of `Row.paper`.
_ERRORS = {
    "train": "training top-1",
    "validation": "validation top-1",
    "validation_top5": "validation top-5",
}


def ablation(run: TrainingRun, seeds: Positive | None = None) -> Metrics:
    """Train every row of Table 3 and compare its errors with the paper's.

    Args:
        seeds: Seeds per row, from --seed on; by default 3, or 1 with --limit.
    """
    train, validation = run.split()
    numbers = [*range(run.seed, run.seed + (seeds or (1 if run.limit else 3)))]
    work = [(row, seed) for seed in numbers for row in TABLE_3]
    results: dict[str, Any] = {
        row.name: {
            "paper": dict(zip(_ERRORS, row.paper, strict=True)),
            "errors": {name: [] for name in _ERRORS},
        }
        for row in TABLE_3
    }
    progress = run.progress("training")
    for done, (row, seed) in enumerate(work):
        file = run.path / "runs" / f"{choose_key(run, row, seed)}.json"
        if not file.exists():
            net = run.train(row.arch, train, seed, progress, done, len(work))
            errors = measure_errors(net, train, validation)
            file.parent.mkdir(exist_ok=True)
            write_atomically(file, to_json({"row": row.name, "errors": errors}))
        errors = json.loads(file.read_text())["errors"]
        for name, error in errors.items():
            results[row.name]["errors"][name].append(error)
        progress(done + 1, len(work), row=row.name, error=errors["validation"])
    correlations = {
        base.name: correlate([results[row.name] for row in TABLE_3 if row.base is base])
        for base in (ALEXNET_MINI, ZFNET_MINI)
    }
    draw(run, results, f"{len(train):,} images, {plural(run.passes, 'epoch')}")
    print_table(results)
    yield "data", train.source
    yield "train_images", len(train)
    yield "validation_images", len(validation)
    yield "epochs", run.passes
    yield "seeds", numbers
    yield "rows", results
    yield "rank_correlation_with_the_paper", correlations


def choose_key(run: TrainingRun, row: Row, seed: int) -> str:
    """Name a training by everything that its result depends on."""
    library = sorted(Path(zf.__path__[0]).rglob("*.py"))
    code = [*library, Path(__file__), Path(mini.__file__)]
    return digest(repr(row.arch), run.digests, run.passes, seed, *code)[:16]


def measure_errors(
    net: Network, train: Dataset, validation: Dataset
) -> dict[str, float]:
    """Measure the top-1 errors, and top-5 on validation images, in percent."""
    # Together, so that one program is compiled for both.
    logits = evaluate(net, np.concatenate([train.images, validation.images]))
    parts = np.split(logits, [len(train)])

    def error(logits: np.ndarray, data: Dataset, top: int) -> float:
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        return 100 * float(1 - (best == data.labels[:, None]).any(1).mean())

    return {
        "train": error(parts[0], train, 1),
        "validation": error(parts[1], validation, 1),
        "validation_top5": error(parts[1], validation, 5),
    }


def correlate(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Compute Spearman's rank correlation of the paper's errors with our means."""
    return {
        name: spearman(
            np.array([row["paper"][name] for row in rows]),
            np.array([np.mean(row["errors"][name]) for row in rows]),
        )
        for name in _ERRORS
    }


def draw(run: TrainingRun, results: Mapping[str, Any], size: str) -> None:
    """Draw the errors of each row beside the paper's."""
    from zfnet_jax.viz.ablation import ablation_chart

    def stack(kind: str) -> dict[str, np.ndarray]:
        return {
            f"{heading} error (%)": np.array(
                [row[kind][name] for row in results.values()]
            )
            for name, heading in _ERRORS.items()
        }

    figure = ablation_chart(
        f"Table 3 at the size of CIFAR-10: {size}",
        list(results),
        stack("errors"),
        stack("paper"),
    )
    run.figure("ablation", figure)


def print_table(results: Mapping[str, Any]) -> None:
    """Print errors, mean and spread over several seeds, beside the paper's."""
    rows = [["error in percent"]]
    for heading in _ERRORS.values():
        rows[0] += [heading, "paper"]
    for name, row in results.items():
        rows.append([name])
        for kind, errors in row["errors"].items():
            mean = spell_mean(np.mean(errors), spread(errors), ".1f")
            rows[-1] += [mean, f"{row['paper'][kind]:.1f}"]
    say_table(rows)


if __name__ == "__main__":
    sys.exit(main(ablation))
