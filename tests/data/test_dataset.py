import dataclasses

import jaxtyping
import numpy as np
import pytest

from zfnet_jax.data import Dataset


@pytest.fixture
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(
        images=rng.integers(0, 256, (5, 4, 3, 3), np.uint8),
        labels=np.array([2, 0, 1, 2, 0], np.int32),
        class_names=("a", "b", "c"),
        name="small",
        masks=rng.integers(0, 2, (5, 4, 3)).astype(np.bool_),
        source="random",
    )


def test_take_keeps_images_labels_and_masks_together(dataset):
    part = dataset.take(np.array([3, 0, 3]))
    assert len(part) == 3 and part.masks is not None and dataset.masks is not None
    for row, index in enumerate([3, 0, 3]):
        np.testing.assert_array_equal(part.images[row], dataset.images[index])
        np.testing.assert_array_equal(part.masks[row], dataset.masks[index])
    assert part.labels.tolist() == [2, 2, 2]
    assert dataclasses.replace(dataset, masks=None).take(np.array([1])).masks is None


def test_digest_depends_on_the_data_alone(dataset):
    same = dataclasses.replace(
        dataset,
        images=np.asfortranarray(dataset.images),  # equal values in another layout
        labels=dataset.labels.copy(),
        name="other",
        source="elsewhere",
    )
    assert same.digest() == dataset.digest()
    variants = [
        dataclasses.replace(dataset, images=255 - dataset.images),
        dataclasses.replace(dataset, images=dataset.images[..., :1]),
        dataclasses.replace(dataset, labels=dataset.labels[::-1].copy()),
        dataclasses.replace(dataset, masks=~np.asarray(dataset.masks)),
        dataclasses.replace(dataset, masks=None),
        dataclasses.replace(dataset, class_names=("a", "c", "b")),
        dataset.take(np.arange(4)),
    ]
    digests = {variant.digest() for variant in [dataset, *variants]}
    assert len(digests) == 1 + len(variants)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((5, 4, 3, 2), np.uint8)}, r"images .*\[5, 4, 3, 2\]"),
        ({"images": np.zeros((5, 4, 3, 3), np.float32)}, "images .*float32"),
        ({"labels": np.zeros(5, np.int64)}, "labels .*int64"),
        ({"labels": np.array([0, 1, 2, 3, 0], np.int32)}, "0 to 3.* 3 class"),
        ({"masks": np.zeros((5, 3, 4), np.bool_)}, r"masks .*\(5, 3, 4\)"),
    ],
)
def test_refuses_what_does_not_fit(change, said, dataset, monkeypatch):
    # The users' own checks, which come without those that run in tests.
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(dataset, **change)
