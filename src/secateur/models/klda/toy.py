"""A toy of 29 documents: what is in a fruit basket."""

from __future__ import annotations

FRUITS = ("apple", "banana", "cherry", "date", "elderberry", "fig", "grape", "honeydew")
KINDS = ("breakfast", "jam", "dessert")

_BASKETS = {
    "breakfast": (
        "apple banana",
        "banana apple honeydew",
        "honeydew banana",
        "apple honeydew",
        "banana banana apple",
        "apple banana honeydew",
        "honeydew apple apple",
        "banana honeydew honeydew",
        "apple apple banana grape",
        "honeydew banana apple fig",
    ),
    "jam": (
        "cherry elderberry",
        "elderberry cherry grape",
        "grape cherry",
        "grape elderberry elderberry",
        "cherry cherry elderberry",
        "elderberry grape",
        "cherry grape grape",
        "elderberry cherry grape apple",
        "grape cherry elderberry",
        "cherry elderberry date",
    ),
    "dessert": (
        "date fig",
        "fig date date",
        "fig fig date",
        "date fig grape",
        "fig date honeydew",
        "date date fig",
        "fig date cherry",
        "date fig fig",
        "fig date",
    ),
}


def fruit_baskets() -> tuple[list[str], list[str]]:
    """Return 29 documents over eight fruits, and what each basket is for: breakfast, jam or dessert.

    >>> texts, kinds = fruit_baskets()
    >>> len(texts), texts[0], kinds[0], sorted(set(" ".join(texts).split())) == list(FRUITS)
    (29, 'apple banana', 'breakfast', True)
    """
    pairs = [(text, kind) for kind, texts in _BASKETS.items() for text in texts]
    return [text for text, _ in pairs], [kind for _, kind in pairs]
