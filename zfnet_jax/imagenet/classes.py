"""The 1,000 classes of ImageNet (ILSVRC 2012), in the order of their labels.

Every published network has this order: that of the WordNet identifiers. An identifier
is a place in WordNet 3.0, whose names and relations are used (LICENSE-WordNet.txt).

    >>> CLASS_NAMES[281], WORDNET_IDS[281]
    ('tabby', 'n02123045')
    >>> BROADER_TERMS["beagle"][:3]
    ('hound', 'hunting dog', 'dog')
"""

from __future__ import annotations

import csv
from pathlib import Path


def _read(file: str) -> list[dict[str, str]]:
    with Path(__file__).with_name(file).open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def _list_broader_terms() -> dict[str, tuple[str, ...]]:
    """List the terms of each class, the narrowest first."""
    groups = []
    for row in _read("broader_terms.csv"):
        ends = [part.split("-") for part in row["classes"].split()]
        labels = [x for end in ends for x in range(int(end[0]), int(end[-1]) + 1)]
        groups.append((labels, row["names"].split(", ")))
    terms: dict[str, dict[str, None]] = {name: {} for name in CLASS_NAMES}
    for labels, names in sorted(groups, key=lambda group: len(group[0])):
        for label in labels:
            terms[CLASS_NAMES[label]] |= dict.fromkeys(names)
    return {name: tuple(own) for name, own in terms.items()}


_rows = _read("classes.csv")
CLASS_NAMES = tuple(row["name"] for row in _rows)
WORDNET_IDS = tuple(row["wnid"] for row in _rows)
# Other names of a class in WordNet, by its name: "tabby cat" of "tabby".
SYNONYMS = {row["name"]: row["synonyms"] for row in _rows}
# Common terms above a class in WordNet, by its name; also "puppy" and "kitten", which
# a search would find only in "mud puppy", a name of the axolotl, or nowhere.
BROADER_TERMS = _list_broader_terms()
