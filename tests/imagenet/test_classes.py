"""The terms above ImageNet's classes, against facts known without WordNet."""

import re

import pytest

from zfnet_jax.imagenet.classes import BROADER_TERMS, CLASS_NAMES, SYNONYMS


def find(term: str) -> list[int]:
    return [
        label for label, name in enumerate(CLASS_NAMES) if term in BROADER_TERMS[name]
    ]


def join(*ranges: tuple[int, int]) -> list[int]:
    return [x for first, last in ranges for x in range(first, last + 1)]


def test_terms_hold_the_classes_known_to_be_theirs():
    # Dogs, birds and others as papers on ImageNet's hierarchy count them.
    assert find("dog") == join((151, 268))
    assert find("bird") == join((7, 24), (80, 100), (127, 146))
    assert find("animal") == join((0, 397))
    assert find("snake") == join((52, 68))
    assert find("spider") == join((72, 77))
    assert find("puppy") == find("dog") and find("kitten") == find("domestic cat")
    assert find("cat") == join((281, 287))
    assert find("big cat") == join((288, 293))
    assert find("bear") == join((294, 297))
    assert find("butterfly") == join((321, 326))
    assert find("monkey") == join((370, 382))
    assert find("horse") == [339] and find("apple") == [948]
    assert [CLASS_NAMES[x] for x in find("musical instrument")][:4] == [
        *("accordion", "acoustic guitar", "banjo", "bassoon"),
    ]


# Words at the end of names, and the term above all classes of such a name.
ENDINGS = {
    "dog": "terrier|[a-z]*hound|retriever|spaniel|setter|[a-z]+ poodle|schnauzer|pug",
    "snake": "snake|viper|cobra|mamba|sidewinder|rock python",
    "bird": "owl|eagle|duck|goose|swan|penguin|finch|grouse|hen|crane \\(bird\\)",
    "monkey": "monkey|baboon|macaque|langur|marmoset",
    "fish": "shark|ray|fish|sturgeon",
    "insect": "beetle|butterfly|fly|dragonfly|bee|ant|cricket|mantis",
    "truck": "truck|pickup",
    "clock": "clock",
    "ball": "tennis ball|golf ball|soccer ball|volleyball",
    "fruit": "orange|lemon|fig|pineapple|banana|strawberry|pomegranate",
}


@pytest.mark.parametrize("term", ENDINGS)
def test_a_class_is_below_the_term_that_its_name_ends_with(term):
    ending = re.compile(rf"(^|.* )({ENDINGS[term]})", re.IGNORECASE)
    named = {x for x, name in enumerate(CLASS_NAMES) if ending.fullmatch(name)}
    assert len(named) > 2
    missing = [CLASS_NAMES[x] for x in named - {*find(term)}]
    assert not missing


def test_terms_of_a_class_come_from_the_narrowest_on():
    assert BROADER_TERMS["beagle"][:4] == (
        "hound",
        "hunting dog",
        "dog",
        "puppy",
    )
    assert BROADER_TERMS.keys() == SYNONYMS.keys() == {*CLASS_NAMES}
    terms = {term for own in BROADER_TERMS.values() for term in own}
    assert 150 < len(terms) < 300
    assert sum(map(bool, BROADER_TERMS.values())) > 800
