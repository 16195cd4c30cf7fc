"""Files of boxes, and boxes in images of another size."""

from pathlib import Path

import numpy as np
import pytest

from zfnet_jax.data import Preprocessing, fit_photograph
from zfnet_jax.data.boxes import Row, convert_box, fit_box, read_boxes
from zfnet_jax.files import DataNotFoundError

SHIPPED = Path(__file__).parents[2] / "experiments" / "boxes"
HEADER = "image,part,top,left,bottom,right\n"
GOOD = "1,eye,0,0,9,9\n2,eye,3,3,9,9\n"


@pytest.mark.parametrize(
    ("stored", "kept", "input_hw", "crop"),
    [
        ((101, 77), (20, 12), (20, 12), 1.0),
        ((20, 30), (32, 32), (32, 32), 1.0),
        ((57, 57), (32, 32), (16, 16), 1.0),
        ((90, 70), (21, 28), (21, 28), 0.7),
    ],
)
def test_a_stripe_shows_in_the_converted_box(stored, kept, input_hw, crop):
    """Stripes across the image: half of a pixel's light is where an edge lies."""
    preprocess = Preprocessing(np.zeros((*kept, 3), np.float32), 1.0, input_hw)
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(20):
        for axis in (0, 1):
            extent = stored[axis]
            start = int(rng.integers(0, extent - extent // 4))
            end = int(rng.integers(start + extent // 5, extent + 1))
            box = [0, 0, *stored]
            box[axis], box[axis + 2] = start, end
            image = np.zeros((*stored, 3), np.uint8)
            image[box[0] : box[2], box[1] : box[3]] = 255
            fitted = fit_photograph(image, kept, crop=crop)
            line = preprocess.pictures(fitted[None])[0, ..., 0].mean(1 - axis)
            converted = convert_box(box, stored, kept, input_hw, crop)
            first, _, last, _ = np.roll(converted, -axis)
            inside = np.zeros(input_hw[axis], bool)
            inside[first:last] = True
            # Pixels that an edge halves may fall on either side of it by rounding.
            clear = np.abs(line - 127.5) > 20
            np.testing.assert_array_equal((line > 127.5)[clear], inside[clear])
            checked += clear.sum()
    assert checked > 15 * 20


def test_boxes_that_a_network_cannot_see_are_refused():
    for box, stored, message in (
        ((0, 0, 9, 33), (32, 32), "leaves the image of 32 x 32"),
        ((9, 0, 9, 9), (32, 32), "is empty"),
        ((0, 0, 32, 32), (32, 32), "covers the whole image"),
        ((2, 2, 3, 3), (32, 32), "at the network's 16 x 16 pixels, .* is empty"),
        ((0, 9, 20, 80), (20, 100), "in the center square, .* covers the whole"),
    ):
        with pytest.raises(ValueError, match=f"a.csv, line 4: .*{message}"):
            fit_box(Row("a.csv, line 4", box), stored, (32, 32), (16, 16))


def test_shipped_boxes_are_of_ten_dogs_each():
    for name in ("cifar10_dogs", "dog_faces"):
        table = read_boxes(SHIPPED / f"{name}.csv")
        assert len(table) == 10
        for rows in table.values():
            assert list(rows) == ["right eye", "left eye", "nose"]
            right, left, nose = (np.array(row.box) for row in rows.values())
            # The dog's own right eye is left in the picture; the nose is below both.
            middle = [box[:2] + box[2:] for box in (right, left, nose)]
            assert middle[0][1] < middle[2][1] < middle[1][1]
            assert middle[2][0] > (middle[0][0] + middle[1][0]) / 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,part,top,left,bottom\n", "the header must be image,part"),
        (HEADER, "holds no boxes"),
        (HEADER + GOOD + "3,eye,0,0,9,9,1\n", "line 4: give 6 fields"),
        (HEADER + "1,eye,0,1.5,9,9\n", "line 2: edges must be whole numbers.*1.5"),
        (HEADER + GOOD + "01,eye,1,1,9,9\n", "line 4: eye of 1 is also in .*line 2"),
        (HEADER + GOOD + "2,nose,1,1,9,9\n", "line 2: 1 has no nose"),
        (HEADER + "1,œil,0,0,9,9\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_malformed_file_names_its_line(text, message, tmp_path):
    file = tmp_path / "parts.csv"
    file.write_bytes(text.encode("cp1252"))
    with pytest.raises(ValueError, match=message):
        read_boxes(file)


def test_a_missing_file_is_missing_data(tmp_path):
    with pytest.raises(DataNotFoundError, match="there is no file"):
        read_boxes(tmp_path / "no.csv")
