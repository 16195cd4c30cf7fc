"""Train ZFNET32 on generated shapes and draw what it learned, without a download.

    python -m experiments.quickstart

Expected: a test accuracy above 90% (random guessing: 10%) after about 20 seconds of
training on two CPU cores, the figures of `experiments.train_cifar10`, and a gallery of
every unit of the convolutions and of the classifier, to be opened in a browser. In all
it takes about 80 seconds.
"""

from __future__ import annotations

import sys

import zfnet_jax as zf
from experiments.harness import Metrics, Positive, Run, main
from experiments.progress import say
from experiments.tensorboard import write_events
from experiments.train_cifar10 import Log, report, say_next
from zfnet_jax.data import load_dataset

_BATCH = 128
# Without the hidden dense layers, which would take much longer.
_GALLERY_LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "logits")


def quickstart(
    run: Run, epochs: Positive = 2, limit: Positive | None = None
) -> Metrics:
    """Train ZFNET32 on generated shapes for two epochs, and show what it learned.

    Args:
        epochs: Passes over the training images.
        limit: Maximum number of training images, and of test images.
    """
    images, test = (
        load_dataset("shapes", split, limit=limit) for split in ("train", "test")
    )
    log, epoch = Log({"--batch-size": _BATCH}), None
    for epoch in zf.train(
        zf.ZFNET32,
        images,
        epochs=epochs,
        batch_size=_BATCH,
        seed=run.seed,
        progress=run.progress("training"),
    ):
        log.history.append(epoch.record)
        log.seconds = epoch.train_seconds
        folder = run.path / "tensorboard"
        write_events(folder, epoch, epoch.record, images, zf.FAST.label_smoothing)
    assert epoch is not None
    yield from report(run, epoch, log, images, test)
    net = zf.load(run.path / "weights.safetensors")
    gallery = zf.gallery(
        net,
        net.load_images(test),
        run.path / "gallery",
        layers=_GALLERY_LAYERS,
        title="Units of ZFNET32, trained on shapes",
        progress=run.progress,
    )
    run.end_progress()
    say(f"gallery: file://{gallery.page.resolve()}")
    say_next(run)


if __name__ == "__main__":
    sys.exit(main(quickstart))
