"""Linear classifiers against scikit-learn, and layers of which the answer is known."""

import importlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import zfnet_jax as zf
from tests.analysis.test_mining import SMALL
from tests.references.deconvnet_cases import draw_state
from zfnet_jax.analysis import balanced_order, fit_linear, layer_features, probe

pytestmark = pytest.mark.usefixtures("compiled_once")

TRAIN, VALIDATION, TEST = 48, 30, 60
PENALTIES = [1e-1, 1e-3]

# The package has a function of the module's name.
MODULE = importlib.import_module("zfnet_jax.analysis.probe")


@pytest.fixture(scope="module")
def drawn():
    """Three classes that overlap, in 12 dimensions of different widths."""
    rng = np.random.default_rng(0)
    labels = np.arange(TRAIN + VALIDATION + TEST) % 3
    centres = rng.normal(size=(3, 12))
    features = centres[labels] + 1.5 * rng.normal(size=(len(labels), 12))
    return (features * np.logspace(-2, 2, 12) + 3).astype(np.float32), labels


def by_scikit_learn(features, labels, classifier: str, penalty: float):
    strength = 1 / (penalty * len(features))
    if classifier == "softmax":
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000)
    else:
        # Its intercept is penalised: by next to nothing at this scaling.
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
def test_training_ends_where_scikit_learn_does(drawn, classifier):
    features = StandardScaler().fit_transform(drawn[0][:TRAIN]).astype(np.float32)
    labels = drawn[1][:TRAIN]
    found = fit_linear(features, labels, classifier, PENALTIES)
    for index, penalty in enumerate(PENALTIES):
        known = by_scikit_learn(features, labels, classifier, penalty)
        problem = (features, labels, classifier, penalty)
        least = objective(*problem, known.coef_.T, known.intercept_)
        ours = objective(*problem, found.weights[index], found.intercepts[index])
        assert ours == pytest.approx(float(found.objectives[index]), rel=1e-5)
        assert found.gaps[index] <= MODULE.TOLERANCE
        assert ours <= least * (1 + MODULE.TOLERANCE)
        apart = np.linalg.norm(found.weights[index] - known.coef_.T)
        assert apart < 0.03 * np.linalg.norm(known.coef_)


@pytest.mark.parametrize("dimensions", [12, 500])
def test_accuracies_are_those_of_scikit_learn(drawn, dimensions):
    """Also where the dimensions outnumber the images that train."""
    features, labels = drawn
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(len(labels), dimensions - 12)).astype(np.float32)
    features = np.concatenate([features, noise], 1)
    found = probe(features, labels, TRAIN, VALIDATION, penalties=PENALTIES)
    standard = StandardScaler().fit(features[:TRAIN]).transform(features)
    standard = standard / np.sqrt(dimensions)
    for classifier, ours in found.items():
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


def test_dimensions_that_say_nothing_change_nothing(drawn, monkeypatch):
    """Constant ones make more dimensions than images; blocks cut them anyhow."""
    features, labels = drawn
    few = probe(features, labels, TRAIN, VALIDATION, penalties=PENALTIES)
    monkeypatch.setattr(MODULE, "_BLOCK", 5)
    constant = np.full((len(labels), 60), 7, np.float32)
    constant[TRAIN:] = 8  # varies, but not among the images that train
    features = np.concatenate([constant, features], 1)
    many = probe(features, labels, TRAIN, VALIDATION, penalties=PENALTIES)
    for classifier, found in few.items():
        same_as(many[classifier], found)


def same_as(one, other) -> None:
    np.testing.assert_array_equal(one.predictions, other.predictions)
    np.testing.assert_array_equal(one.validation, other.validation)
    assert (one.penalty, one.accuracy) == (other.penalty, other.accuracy)


def test_scale_and_shift_of_a_dimension_do_not_matter(drawn):
    features, labels = drawn
    moved = features * 2.0 ** np.arange(-6, 6, dtype=np.float32) + np.float32(0.5)
    there = probe(moved, labels, TRAIN, VALIDATION, penalties=PENALTIES)
    here = probe(features, labels, TRAIN, VALIDATION, penalties=PENALTIES)
    for classifier, found in here.items():
        same_as(there[classifier], found)


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
        found = probe(features, labels, TRAIN, VALIDATION, penalties=PENALTIES)
        for one in found.values():
            assert least <= one.accuracy <= most


def test_of_equally_good_penalties_the_greatest_is_picked():
    labels = np.arange(TRAIN + 60) % 3
    features = np.eye(12, dtype=np.float32)[labels]
    for penalties in (PENALTIES, PENALTIES[::-1]):
        for one in probe(features, labels, TRAIN, 30, penalties=penalties).values():
            np.testing.assert_array_equal(one.validation, 1)
            assert one.penalty == 1e-1


def test_rows_that_validate_or_test_do_not_train(drawn):
    features, labels = drawn
    found = probe(features, labels, TRAIN, VALIDATION, penalties=PENALTIES)
    changed = labels.copy()
    changed[-TEST:] = (labels[-TEST:] + 1) % 3
    relabelled = probe(features, changed, TRAIN, VALIDATION, penalties=PENALTIES)
    changed = features.copy()
    changed[TRAIN:] *= -5
    moved = probe(changed, labels, TRAIN, VALIDATION, penalties=PENALTIES)
    for name, one in found.items():
        np.testing.assert_array_equal(relabelled[name].predictions, one.predictions)
        assert relabelled[name].penalty == one.penalty
        np.testing.assert_array_equal(moved[name].training, one.training)


def test_features_are_those_of_the_network(monkeypatch):
    model = zf.load_weights(draw_state(SMALL), SMALL)
    images = np.random.default_rng(0).normal(size=(5, 9, 12, 3)).astype(np.float32)
    monkeypatch.setattr(MODULE, "_TOGETHER", 2)
    found = layer_features(model, images, ["fc3", "conv1"])
    known = model.features(images).features
    assert list(found) == ["fc3", "conv1"]
    for layer, rows in found.items():
        expected = np.asarray(known[layer]).reshape(5, -1)
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


def test_an_order_is_balanced_and_of_its_seed():
    labels = np.array([0] * 30 + [1] * 10 + [2] * 20)
    order = balanced_order(labels, 0)
    assert sorted(order) == list(range(60))
    for count in range(31):
        of_each = np.bincount(labels[order[:count]], minlength=3)
        assert of_each.max() - of_each.min() <= 1
    assert labels[order[-10:]].tolist() == [0] * 10
    np.testing.assert_array_equal(order, balanced_order(labels, 0))
    assert (order != balanced_order(labels, 1)).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0}, "train on 0"),
        ({"train": 130, "validation": 8}, "138 rows.*130.*8"),
        ({"train": 2}, "class 2 has no row among the 2"),
        ({"features": np.full((138, 2), np.nan, np.float32)}, "finite"),
        ({"penalties": []}, "one penalty at least"),
        ({"penalties": [0.1, -2.0]}, "from 1e-9 to 1e9, not -2"),
        ({"classifiers": ["tree"]}, "tree.*svm, softmax"),
        ({"labels": np.zeros(138, int)}, "two classes"),
    ],
)
def test_what_cannot_be_is_refused(drawn, change, message, monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arguments = {
        "features": drawn[0],
        "labels": drawn[1],
        "train": TRAIN,
        "validation": VALIDATION,
    }
    with pytest.raises(ValueError, match=message):
        probe(**{**arguments, **change})


def test_there_must_be_layers_and_images():
    model = zf.load_weights(draw_state(SMALL), SMALL)
    with pytest.raises(ValueError, match="conv9"):
        layer_features(model, np.zeros((1, 9, 12, 3), np.float32), ["conv9"])
    for count, layers in ((0, ["conv1"]), (1, [])):
        with pytest.raises(ValueError, match="one layer and one image"):
            layer_features(model, np.zeros((count, 9, 12, 3), np.float32), layers)
