"""Figures of a training: they show the numbers they are given."""

import numpy as np

from zfnet_jax.viz.predictions import draw_predictions
from zfnet_jax.viz.training import confusion_matrix, training_curves


def test_curves_are_drawn_by_step_and_validation_by_epoch():
    history = [
        {
            "epoch": epoch,
            "steps": [3 * epoch - 2, 3 * epoch - 1, 3 * epoch],
            "loss_curve": [2.0, 1.5, 1.0],
            "accuracy_curve": [0.1, 0.2, 0.3],
            "rate_curve": [10.0**-epoch] * 3,
            "validation_loss": 1.0 / epoch,
            "validation_accuracy": 0.2 * epoch,
        }
        for epoch in (1, 2, 3)
    ]
    _, loss, accuracy, rate = training_curves(history, 0.55).axes
    training, validation = (np.asarray(x.get_xydata()) for x in loss.lines)
    np.testing.assert_allclose(training[:, 0], np.arange(1, 10) / 3)
    np.testing.assert_allclose(validation, [(1, 1), (2, 1 / 2), (3, 1 / 3)])
    test = np.asarray(accuracy.lines[2].get_xydata())
    assert test[:, 1].tolist() == [0.55, 0.55]
    assert rate.get_yscale() == "log"


def test_confusion_rows_are_true_classes_and_zeros_are_left_out():
    matrix = np.array([[3, 1], [0, 4]])
    figure = confusion_matrix(matrix, ["cat", "$dog$"])
    sheet, ax = figure.axes
    cells = {x.get_position(): x.get_text() for x in ax.texts}
    assert cells == {(0, 0): "3", (1, 0): "1", (1, 1): "4"}
    np.testing.assert_allclose(
        np.asarray(ax.images[0].get_array()), [[0.75, 0.25], [0, 1]]
    )
    assert (
        sheet.texts[0].get_text() == "7 of 8 test images classified correctly (87.50%)"
    )
    figure.draw_without_rendering()


def test_the_bar_of_the_true_class_is_marked():
    images, chances = np.zeros((2, 8, 8, 3), np.uint8), np.array([[0.9, 0.1]] * 2)
    figure = draw_predictions(
        "t", "n", images, ["a", "b"], [["cat", "dog"]] * 2, chances, ["cat", "dog"]
    )
    words = [x.get_text() for x in figure.axes[0].texts]
    first = ["a", "true: cat", "✓", "cat", "90.0%", "", "dog", "10.0%"]
    second = ["b", "true: dog", "", "cat", "90.0%", "✓", "dog", "10.0%"]
    assert words[2:] == first + second
