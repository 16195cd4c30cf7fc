"""Event files of a training, read back."""

import itertools
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zfnet_jax as zf
from experiments.tensorboard import write_events
from zfnet_jax.arch import Architecture, Conv, Dense
from zfnet_jax.data import Preprocessing, make_shapes
from zfnet_jax.train_step import TrainState
from zfnet_jax.training import Epoch

pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")

LAYERS = Conv("conv1", 4, kernel=3), Dense("fc2", 8), Dense("logits", 10, relu=False)
ARCH = Architecture("tiny", (8, 8), LAYERS)
IMAGES = make_shapes(40)


def make_epoch(number: int) -> Epoch:
    """An epoch of a training, with the weights of its own seed."""
    model = zf.ConvNet(ARCH, rngs=nnx.Rngs(number))
    preprocess = Preprocessing.fit(IMAGES.images, 1 / 64, ARCH.input_hw)
    record = {"epoch": number, "train_loss": 1 / number, "loss_curve": [1.0]}
    step, zeros = jnp.int32(number), jnp.zeros((1, 2))
    state = TrainState(model, None, {}, None, step, zeros[0], zeros)
    return Epoch(number, model, preprocess, record, state, 0.0, 0.0)


def read_events(folder: Path) -> dict[tuple[str, int], Any]:
    """Values by tag and step."""
    from tensorboardX.proto import event_pb2

    values = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        while content:
            # A record is its length, a checksum of 4 bytes, itself, and another one.
            (length,) = struct.unpack("<Q", content[:8])
            event = vars(event_pb2)["Event"].FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                values[value.tag, event.step] = getattr(value, kind)
    return values


def test_scalars_and_histograms_are_those_of_each_epoch(tmp_path):
    batch, compute = IMAGES.take(np.arange(32)), jax.jit(zf.ConvNet.features)
    for epoch in map(make_epoch, (1, 2)):
        write_events(tmp_path, epoch, epoch.record, IMAGES, 0.1)
        events = read_events(tmp_path)
        events = {tag: x for (tag, step), x in events.items() if step == epoch.number}
        assert events.pop("train_loss") == 1 / epoch.number
        model, inputs = epoch.model, epoch.preprocess(batch.images)
        features = compute(model, inputs).features
        # What softmax and cross-entropy send back to the logits.
        targets = 0.9 * np.eye(10)[batch.labels] + 0.01
        signal = (jax.nn.softmax(features["logits"]) - targets) / 32
        for tag, values in {
            "weights/conv1/kernel": model.conv1.kernel[...],
            "weights/logits/bias": model.logits.bias[...],
            "gradients/logits/kernel": features["fc2"].T @ signal,
            "gradients/logits/bias": signal.sum(0),
            "activations/conv1": features["conv1"],
        }.items():
            histogram = events[tag]
            assert histogram.num == values.size == sum(histogram.bucket)
            shown = histogram.min, histogram.max, histogram.sum_squares
            expected = values.min(), values.max(), np.square(values).sum()
            np.testing.assert_allclose(shown, expected, rtol=1e-4, atol=1e-7)
        names = [layer.name for layer in LAYERS]
        affine = itertools.product(("weights", "gradients"), names, ("kernel", "bias"))
        tags = {"/".join(tag) for tag in affine}
        assert events.keys() == tags | {f"activations/{name}" for name in names}


def test_nothing_is_written_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    write_events(tmp_path / "events", make_epoch(1), {}, IMAGES, 0.0)
    assert not (tmp_path / "events").exists()
