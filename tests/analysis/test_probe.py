"""Linear classifiers against scikit-learn, and layers whose answer is known."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tests.networks import TINY, random_model
from zfnet_jax.analysis.probe import (
    TOLERANCE,
    balance_order,
    fit_linear,
    probe,
    probe_features,
)

TRAIN, VALIDATION, TEST = 48, 30, 60
PENALTIES = [1e-1, 1e-3]


@pytest.fixture(scope="module")
def data():
    """Three classes that overlap, in 12 dimensions of different widths."""
    rng = np.random.default_rng(0)
    labels = np.arange(TRAIN + VALIDATION + TEST) % 3
    centers = rng.normal(size=(3, 12))
    features = centers[labels] + 1.5 * rng.normal(size=(len(labels), 12))
    return (features * np.logspace(-2, 2, 12) + 3).astype(np.float32), labels


def probe_all(features, labels):
    return probe_features(features, labels, TRAIN, VALIDATION, penalties=PENALTIES)


def by_scikit_learn(features, labels, classifier: str, penalty: float):
    strength = 1 / (penalty * len(features))
    if classifier == "softmax":
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
    else:
        # Its intercept is penalized: by next to nothing at this scaling.
        model = LinearSVC(
            C=strength,
            dual=False,  # pyright: ignore[reportArgumentType]
            tol=1e-8,
            intercept_scaling=100,
            max_iter=10_000,
        )
    return model.fit(features, labels)


def objective(features, labels, classifier, penalty, weights, intercepts) -> float:
    scores = features.astype(np.float64) @ weights + intercepts
    targets = np.eye(3)[labels]
    if classifier == "svm":
        loss = (np.maximum(0, 1 - (2 * targets - 1) * scores) ** 2).sum(1)
    else:
        loss = np.log(np.exp(scores).sum(1)) - (scores * targets).sum(1)
    return loss.mean() + penalty / 2 * (weights**2).sum()


@pytest.mark.parametrize("classifier", ["svm", "softmax"])
def test_training_ends_where_scikit_learn_does(data, classifier):
    features = StandardScaler().fit_transform(data[0][:TRAIN]).astype(np.float32)
    labels = data[1][:TRAIN]
    fit = fit_linear(features, labels, classifier, PENALTIES)
    for index, penalty in enumerate(PENALTIES):
        known = by_scikit_learn(features, labels, classifier, penalty)
        problem = (features, labels, classifier, penalty)
        least = objective(*problem, known.coef_.T, known.intercept_)
        ours = objective(*problem, fit.weights[index], fit.intercepts[index])
        assert ours == pytest.approx(float(fit.objectives[index]), rel=1e-5)
        assert fit.gaps[index] <= TOLERANCE
        assert ours <= least * (1 + TOLERANCE)
        apart = np.linalg.norm(fit.weights[index] - known.coef_.T)
        assert apart < 0.03 * np.linalg.norm(known.coef_)


@pytest.mark.parametrize("dimensions", [12, 500])
def test_accuracies_are_those_of_scikit_learn(data, dimensions):
    """Also where the dimensions outnumber the images that train."""
    features, labels = data
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(len(labels), dimensions - 12)).astype(np.float32)
    features = np.concatenate([features, noise], 1)
    probes = probe_all(features, labels)
    standard = StandardScaler().fit(features[:TRAIN]).transform(features)
    standard = standard / np.sqrt(dimensions)
    for classifier, ours in probes.items():
        models = [
            by_scikit_learn(standard[:TRAIN], labels[:TRAIN], classifier, penalty)
            for penalty in PENALTIES
        ]
        right = np.stack([x.predict(standard) == labels for x in models], 1)
        known = right[TRAIN : TRAIN + VALIDATION].mean(0)
        # A row whose two best classes are all but equal may go either way.
        np.testing.assert_allclose(ours.training, right[:TRAIN].mean(0), atol=0.03)
        np.testing.assert_allclose(ours.validation, known, atol=0.04)
        best = models[PENALTIES.index(ours.penalty)]
        scores = np.sort(best.decision_function(standard[-TEST:]), 1)
        sure = scores[:, -1] - scores[:, -2] > 0.02 * np.abs(scores).max()
        assert sure.mean() > 0.8
        expected = best.predict(standard[-TEST:])
        np.testing.assert_array_equal(ours.predictions[sure], expected[sure])
        assert ours.accuracy == (ours.predictions == labels[-TEST:]).mean()


def test_dimensions_that_say_nothing_change_nothing(data, monkeypatch):
    """Constant ones make more dimensions than images; blocks cut them anyhow."""
    features, labels = data
    expected = probe_all(features, labels)
    monkeypatch.setattr("zfnet_jax.analysis.probe._BLOCK", 5)
    constant = np.full((len(labels), 60), 7, np.float32)
    constant[TRAIN:] = 8  # varies, but not among the images that train
    probes = probe_all(np.concatenate([constant, features], 1), labels)
    for classifier, one in probes.items():
        assert_same(one, expected[classifier])


def assert_same(one, other) -> None:
    np.testing.assert_array_equal(one.predictions, other.predictions)
    np.testing.assert_array_equal(one.validation, other.validation)
    assert (one.penalty, one.accuracy) == (other.penalty, other.accuracy)


@pytest.mark.parametrize("dimensions", [12, 500])
def test_a_layer_that_leaks_the_label_is_read_and_noise_is_not(dimensions):
    rng = np.random.default_rng(2)
    labels = np.arange(TRAIN + VALIDATION + 900) % 3
    noise = rng.normal(size=(len(labels), dimensions)).astype(np.float32)
    leaking = noise.copy()
    for label in range(3):
        hidden = rng.permutation(dimensions // 3)[: dimensions // 4] * 3 + label
        leaking[:, hidden] = (labels == label)[:, None]
    for features, least, most in (
        (leaking, 1, 1),
        # Four standard deviations of as many guesses.
        (noise, *(1 / 3 + sign * 4 * np.sqrt(2 / 9 / 900) for sign in (-1, 1))),
    ):
        for one in probe_all(features, labels).values():
            assert least <= one.accuracy <= most


def test_a_tie_selects_the_greatest_penalty():
    labels = np.arange(TRAIN + 60) % 3
    features = np.eye(12, dtype=np.float32)[labels]
    for penalties in (PENALTIES, PENALTIES[::-1]):
        probes = probe_features(features, labels, TRAIN, 30, penalties=penalties)
        for one in probes.values():
            np.testing.assert_array_equal(one.validation, 1)
            assert one.penalty == 1e-1


def test_rows_that_validate_or_test_do_not_train(data):
    features, labels = data
    probes = probe_all(features, labels)
    changed = labels.copy()
    changed[-TEST:] = (labels[-TEST:] + 1) % 3
    relabeled = probe_all(features, changed)
    changed = features.copy()
    changed[TRAIN:] *= -5
    moved = probe_all(changed, labels)
    for name, one in probes.items():
        np.testing.assert_array_equal(relabeled[name].predictions, one.predictions)
        assert relabeled[name].penalty == one.penalty
        np.testing.assert_array_equal(moved[name].training, one.training)


@pytest.fixture(scope="module")
def model():
    return random_model(TINY)


@pytest.fixture(scope="module")
def images():
    """Two classes that differ in contrast, more than the network has outputs for."""
    rng = np.random.default_rng(0)
    scale = 1 + np.arange(40).reshape(-1, 1, 1, 1) % 4
    return (scale * rng.normal(size=(40, 9, 12, 3))).astype(np.float32)


def test_a_networks_probes_are_those_of_its_features(model, images):
    labels = np.arange(40) % 4
    how: Any = {"train": 20, "validation": 8}
    done = []
    probes = probe(model, images, labels, **how, progress=lambda *x: done.append(x))
    assert list(probes) == ["conv1", "pool1", "conv2", "fc3", "logits"]
    assert done == [(index, 5) for index in range(1, 6)]
    features = model.features(images).features
    for layer in ("conv1", "fc3"):
        rows = np.asarray(features[layer]).reshape(40, -1)
        for classifier, expected in probe_features(rows, labels, **how).items():
            assert_same(probes[layer][classifier], expected)
    with pytest.raises(ValueError, match="3 labels for 40 images"):
        probe(model, images, np.arange(3), **how)


def test_an_order_is_balanced_and_of_its_seed():
    labels = np.array([0] * 30 + [1] * 10 + [2] * 20)
    order = balance_order(labels, 0)
    assert sorted(order) == list(range(60))
    for count in range(31):
        of_each = np.bincount(labels[order[:count]], minlength=3)
        assert of_each.max() - of_each.min() <= 1
    assert labels[order[-10:]].tolist() == [0] * 10
    assert (order != balance_order(labels, 1)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 130, "validation": 8}, "138 images.*130 to train, 8 to validate"),
        ({"train": 2}, "class 2 is not among the 2"),
        (
            {"penalties": [0.1, -2.0]},
            r"penalties \[0.1, -2.0\]: give at least one, each from 1e-9",
        ),
    ],
)
def test_bad_input_is_refused(data, change, message):
    split: Any = {"train": TRAIN, "validation": VALIDATION}
    with pytest.raises(ValueError, match=message):
        probe_features(*data, **split | change)
