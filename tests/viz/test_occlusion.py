"""Fig. 7: where a cell of a map lies."""

import numpy as np

from zfnet_jax.viz.occlusion import spread_cells


def test_cells_lie_where_the_centers_of_the_squares_are():
    # Squares of 2 x 4 in an image of 6 x 7, with centers in rows 1, 3, 5 and columns 2
    # and 5: cells of two rows, and of three columns.
    tops, lefts = np.meshgrid([0, 2, 4], [0, 3], indexing="ij")
    boxes = np.stack([tops, lefts, tops + 2, lefts + 4], -1)
    values = np.arange(6.0).reshape(3, 2)
    rows = [[np.nan, x, x, x, y, y, y] for x, y in values]
    expected = np.repeat(rows, 2, 0)
    # Pixel 0 is 1.5 from the first center, which is just within half a step.
    expected[:, 0] = expected[:, 1]
    np.testing.assert_array_equal(spread_cells(values, boxes, (6, 7)), expected)
    # With more room on all sides.
    wide = spread_cells(values, boxes + 2, (10, 11))
    np.testing.assert_array_equal(wide[2:8, 2:9], expected)
    assert np.isnan(wide[:2]).all() and np.isnan(wide[:, 9:]).all()
    # The last square is moved back to the border: centers at 2, 6 and 7 of 9.
    lines = np.array([[0, 4], [4, 8], [5, 9]])
    uneven = np.stack([np.concatenate([x, x])[[0, 2, 1, 3]] for x in lines])[:, None]
    column = spread_cells(values[:, :1], uneven, (9, 9))[:, 5]
    np.testing.assert_array_equal(column, [0, 0, 0, 0, 2, 2, 2, 4, np.nan])
    # A single square stands for the whole image.
    one = spread_cells(values[:1, :1], boxes[:1, :1], (6, 7))
    assert (one == 0).all()
