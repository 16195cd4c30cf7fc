"""The figure of a sweep: every run, the means by value, and the ranking."""

import numpy as np

from zfnet_jax.viz.sweep import compare_runs


def test_curves_go_by_the_value_of_each_option_and_means_over_all_others():
    lengths = [2, 2, 3, 3]
    accuracies = [0.1 * np.arange(1, x + 1) + i / 100 for i, x in enumerate(lengths)]
    histories = [
        [{"validation_accuracy": x, "validation_loss": 1 - x} for x in curve]
        for curve in accuracies
    ]
    values = {"learning rate": ["0.1", "0.2"] * 2, "epochs": ["2", "2", "3", "3"]}
    ranking = {"$a$": [0.3, 0.5], "b": [0.2], "c": []}
    figure = compare_runs("4 runs", histories, values, ranking)
    _, rates, losses, epochs, _, ranks = figure.axes
    curves = [np.asarray(line.get_ydata()) for line in rates.lines]
    runs = [np.append(x, [np.nan] * (3 - len(x))) for x in accuracies]
    # Of 0.1: both runs, then their mean, which ends where the first of them ends.
    mean = [(0.1 + 0.12) / 2, (0.2 + 0.22) / 2, np.nan]
    for curve, expected in zip(curves[:3], [runs[0], runs[2], mean], strict=True):
        np.testing.assert_allclose(curve, expected)
    colors = [line.get_color() for line in rates.lines]
    assert len(set(colors[:3])) == len(set(colors[3:])) == 1 and colors[0] != colors[3]
    np.testing.assert_allclose(
        np.asarray(losses.lines[2].get_ydata()), 1 - np.array(mean)
    )
    np.testing.assert_allclose(
        np.asarray(epochs.lines[2].get_ydata())[:2], [0.105, 0.205]
    )
    labels = [label.get_text() for label in ranks.get_yticklabels()]
    assert labels == ["$a$   40.00%", "b   20.00%", "c   failed"]
    figure.draw_without_rendering()
