"""The 1,000 classes of ImageNet (ILSVRC 2012), in the order of their labels.

Every published network has this order: that of the WordNet identifiers.

    >>> CLASS_NAMES[281], WORDNET_IDS[281]
    ('tabby', 'n02123045')
"""

import csv
from pathlib import Path

with (
    Path(__file__).with_name("classes.csv").open(encoding="utf-8", newline="") as _file
):
    _rows = list(csv.DictReader(_file))

CLASS_NAMES = tuple(row["name"] for row in _rows)
WORDNET_IDS = tuple(row["wnid"] for row in _rows)
# Other names of a class in WordNet, by its name: "tabby cat" of "tabby".
SYNONYMS = {row["name"]: row["synonyms"] for row in _rows}
