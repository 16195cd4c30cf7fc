"""Transfer against scikit-learn, and draws whose properties are known."""

import collections
import dataclasses
import functools

import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tests.networks import TINY, random_model
from zfnet_jax.analysis.transfer import (
    draw_sets,
    mean_class_accuracy,
    select_penalties,
    train_from_scratch,
    transfer,
)
from zfnet_jax.data import Preprocessing
from zfnet_jax.recipes import FAST
from zfnet_jax.training import train_batches

SIZES = (40, 25, 60)
COUNTS = (6, 9)
PENALTIES = (1e-1, 1e-3)


@pytest.fixture(scope="module")
def labels():
    """Classes of different sizes, in random order."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(3), SIZES))


@pytest.fixture(scope="module")
def pictures(labels):
    """Noise about a color per class."""
    rng = np.random.default_rng(1)
    centers = rng.uniform(90, 160, (3, 1, 1, 3))[labels] + np.zeros((9, 12, 1))
    return (centers + rng.normal(0, 40, centers.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(pictures):
    return Preprocessing.fit(pictures, 1 / 64)(pictures)


@pytest.fixture(scope="module")
def model():
    return random_model(TINY)


@pytest.fixture(scope="module")
def result(model, images, labels):
    done = []
    result = transfer(
        model,
        images,
        labels,
        per_class=[6],
        draws=2,
        test_per_class=30,
        penalties=PENALTIES,
        progress=lambda *x: done.append(x),
    )
    assert done == [(1, 2), (2, 2)]
    return result


def by_scikit_learn(classifier: str, penalty: float, features, labels):
    strength = 1 / (penalty * len(features))
    if classifier == "softmax":
        model = LogisticRegression(C=strength, tol=1e-6, max_iter=10_000)
    else:
        # Its intercept is penalized: by next to nothing at this scaling.
        model = LinearSVC(C=strength, tol=1e-6, intercept_scaling=100, max_iter=100_000)
    return model.fit(features, labels)


def test_accuracies_are_those_of_scikit_learn(result, model, images, labels):
    assert result.layer == "fc3" and result.test_images.tolist() == [30, 19, 30]
    features = np.asarray(model.features(images).features["fc3"])
    for draw, column, train, tests in draw_sets(labels, [6], 2, 30, 0):
        scaler = StandardScaler().fit(features[train])
        alive = features[train].std(0) > 0
        rows = np.asarray(scaler.transform(features))[:, alive] / np.sqrt(alive.sum())
        for classifier, accuracies in result.accuracies.items():
            penalty = result.penalties[classifier][draw, column]
            known = by_scikit_learn(classifier, penalty, rows[train], labels[train])
            correct = known.predict(rows[tests]) == labels[tests]
            expected = np.mean([correct[labels[tests] == x].mean() for x in range(3)])
            # An image whose two best classes are all but equal may go either way.
            assert accuracies[draw, column] == pytest.approx(expected, abs=0.025)
    assert result.accuracies["softmax"].mean() > 0.5


def test_small_classes_count_as_much_as_large_ones():
    labels = np.array([0] * 8 + [1] * 2 + [3])
    predictions = np.array([0] * 6 + [1, 3] + [1, 0] + [1])
    # 6 of 8, 1 of 2 and 0 of 1; class 2 has no image.
    assert mean_class_accuracy(predictions, labels) == pytest.approx(1.25 / 3)


def test_sets_are_disjoint_balanced_and_nested(labels):
    sets = {(x[0], x[1]): x[2:] for x in draw_sets(labels, COUNTS, 2, 30, 5)}
    for (_, column), (train, tests) in sets.items():
        assert np.bincount(labels[train]).tolist() == [COUNTS[column]] * 3
        assert np.bincount(labels[tests]).tolist() == [30, 16, 30]
        assert not np.intersect1d(train, tests).size
        rounds = labels[train].reshape(-1, 3)
        assert (np.sort(rounds, 1) == [0, 1, 2]).all()
    for draw in range(2):
        (small, tests), (large, same) = sets[draw, 0], sets[draw, 1]
        assert set(small) < set(large) and np.array_equal(tests, same)
    assert set(sets[0, 1][0]) != set(sets[1, 1][0])
    (*_, every) = next(draw_sets(labels, [9], 1, None, 5))
    assert len(every) == len(labels) - 27
    # The draw of a seed is the second one of the seed before.
    again = next(draw_sets(labels, COUNTS, 1, 30, 6))
    np.testing.assert_array_equal(again[2], sets[1, 0][0])


def test_the_same_seed_gives_the_same_bytes(result, model, images, labels):
    how = {"per_class": [6], "draws": 2, "test_per_class": 30}
    again = transfer(model, images, labels, penalties=PENALTIES, **how)
    for classifier, accuracies in result.accuracies.items():
        assert accuracies.tobytes() == again.accuracies[classifier].tobytes()


def test_cross_validation_selects_the_penalty():
    rng, labels = np.random.default_rng(3), np.tile(np.arange(3), 6)
    features = rng.normal(size=(18, 6)).astype(np.float32)
    features[:, :3] += np.eye(3)[labels]
    correct = np.zeros(2)
    for fold in range(3):
        out = np.arange(18) // 3 % 3 == fold
        rows = StandardScaler().fit(features[~out]).transform(features) / np.sqrt(6)
        for index, penalty in enumerate(PENALTIES):
            known = by_scikit_learn("softmax", penalty, rows[~out], labels[~out])
            correct[index] += np.sum(known.predict(rows[out]) == labels[out])
    assert correct[0] < correct[1]
    assert select_penalties(features, labels, PENALTIES)["softmax"] == PENALTIES[1]
    # There is nothing to validate one image per class with.
    alone = select_penalties(features[:3], labels[:3], PENALTIES)
    assert alone == {"svm": PENALTIES[0], "softmax": PENALTIES[0]}


def test_networks_from_scratch_see_the_training_images_alone(
    monkeypatch, pictures, labels
):
    runs = []

    def spy(arch, read, *, preprocess, steps, seed, **how):
        runs.append((preprocess.mean, [*read(0, steps)], seed))
        return train_batches(
            arch, read, preprocess=preprocess, steps=steps, seed=seed, **how
        )

    monkeypatch.setattr("zfnet_jax.analysis.transfer.train_batches", spy)
    sgd = functools.partial(optax.sgd, momentum=0.9)
    recipe = dataclasses.replace(FAST, batch_size=16, optimizer=sgd)
    how = {"draws": 2, "recipe": recipe, "steps": 61, "seed": 4}
    accuracies = train_from_scratch(TINY, pictures, labels, per_class=[5, 9], **how)
    assert accuracies.shape == (2, 2) and accuracies.min() > 0.5
    assert len({*accuracies.ravel()}) > 1
    assert [seed for *_, seed in runs] == [4, 4, 5, 5]
    sets = draw_sets(labels, [5, 9], 2, None, 4)
    for (mean, batches, _), (*_, train, _) in zip(runs, sets, strict=True):
        assert [len(batch) for batch, _ in batches] == [16] * 61
        np.testing.assert_allclose(mean, pictures[train].mean(0), atol=1e-4)
        repeats = collections.Counter(
            (image.tobytes(), int(label))
            for batch in batches
            for image, label in zip(*batch, strict=True)
        )
        assert set(repeats) == {(pictures[x].tobytes(), labels[x]) for x in train}
        assert max(repeats.values()) - min(repeats.values()) <= 1
    # The order differs from epoch to epoch.
    epochs = np.concatenate([labels for _, labels in runs[0][1]])[:60].reshape(4, 15)
    assert len({row.tobytes() for row in epochs}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_class": [25]}, "class 1 has 25 in all, and at least one has to test"),
        ({"layer": "conv9"}, "no layer 'conv9'"),
        ({"per_class": []}, r"per_class \[\]: give different whole numbers"),
        ({"per_class": [0, 2]}, r"per_class \[0, 2\]"),
        ({"per_class": [2, 2]}, r"per_class \[2, 2\]"),
        ({"draws": 0}, "draws 0: give a whole number of at least 1"),
        ({"test_per_class": 0}, "test_per_class 0"),
        ({"penalties": []}, r"penalties \[\]: give at least one"),
        ({"penalties": [1.0, -1.0]}, r"penalties \[1.0, -1.0\]"),
    ],
)
def test_bad_input_is_refused(model, images, labels, change, message):
    with pytest.raises(ValueError, match=message):
        transfer(model, images, labels, **{"per_class": [2], **change})
    with pytest.raises(ValueError, match="124 labels for 125 images"):
        transfer(model, images, labels[:-1], per_class=[2])
