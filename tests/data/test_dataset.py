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
    assert dataset.masks is not None
    part = dataset.take(np.array([3, 0, 3]))
    assert len(part) == 3
    for row, index in enumerate([3, 0, 3]):
        np.testing.assert_array_equal(part.images[row], dataset.images[index])
        assert part.masks is not None
        np.testing.assert_array_equal(part.masks[row], dataset.masks[index])
    assert part.labels.tolist() == [2, 2, 2]
    assert (part.class_names, part.name, part.source) == (
        dataset.class_names,
        "small",
        "random",
    )
    assert dataclasses.replace(dataset, masks=None).take(np.array([1])).masks is None
    assert len(dataset.take(np.array([], np.int64))) == 0


def test_digest_depends_on_the_data_alone(dataset):
    same = dataclasses.replace(
        dataset,
        images=np.asfortranarray(dataset.images),  # equal values in another layout
        labels=dataset.labels.copy(),
        name="other",
        source="elsewhere",
    )
    assert same.digest() == dataset.digest()
    assert len(bytes.fromhex(dataset.digest())) == 32

    def changed(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = 1 - array.flat[0]
        return array

    variants = [
        dataclasses.replace(dataset, images=changed(dataset.images % 2)),
        dataclasses.replace(dataset, labels=dataset.labels[::-1].copy()),
        dataclasses.replace(dataset, masks=changed(dataset.masks)),
        dataclasses.replace(dataset, masks=None),
        dataclasses.replace(dataset, class_names=("a", "c", "b")),
        dataclasses.replace(
            dataset, images=dataset.images.reshape(5, 3, 4, 3), masks=None
        ),
        dataset.take(np.arange(4)),
        dataset.take(np.arange(0)),
    ]
    digests = {variant.digest() for variant in [dataset, *variants]}
    assert len(digests) == 1 + len(variants)


def test_one_channel(dataset):
    gray = dataclasses.replace(dataset, images=dataset.images[..., :1])
    assert gray.take(np.array([1])).images.shape == (1, 4, 3, 1)
    assert gray.digest() != dataset.digest()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((5, 4, 3), np.uint8)}, r"images .*\[5, 4, 3\]"),
        ({"images": np.zeros((5, 4, 3, 2), np.uint8)}, r"images .*\[5, 4, 3, 2\]"),
        ({"images": np.zeros((5, 4, 3, 3), np.float32)}, "images .*float32"),
        ({"labels": np.zeros(4, np.int32)}, r"labels .*\(4,\)"),
        ({"labels": np.zeros(5, np.int64)}, "labels .*int64"),
        ({"labels": np.array([0, 1, 2, 3, 0], np.int32)}, "0 to 3.* 3 class"),
        ({"labels": np.array([0, 1, -1, 2, 0], np.int32)}, "-1 to 2"),
        ({"masks": np.zeros((5, 3, 4), np.bool_)}, r"masks .*\(5, 3, 4\)"),
    ],
)
def test_refuses_what_does_not_fit(change, said, dataset, monkeypatch):
    # The users' own checks, which come without those that run in tests.
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(dataset, **change)
