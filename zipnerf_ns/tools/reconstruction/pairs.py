"""Which pictures are compared with which: indices into the list of all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

EXHAUSTIVE_UP_TO = 60
"""Number of pictures up to which each is compared with each."""
NEIGHBORS = 10
"""Pictures that follow one in its sequence and are compared with it, where there are more ..."""
SPREAD = 20
"""... and those that are spread evenly over all, so that loops close and sequences meet."""
MIN_COMMON = 2
"""Pictures that match the same others, at least so many, are compared in the second round."""

MIN_GROUP = 3
"""Fewer pictures are no scene."""

Pair = tuple[int, int]


def first_pairs(sequences: Sequence[int]) -> list[Pair]:
    """The pairs of the first round, the lower index first, in order.

    Args:
        sequences: for each picture, the number of the sequence that it belongs to.
    """
    count = len(sequences)
    if count <= EXHAUSTIVE_UP_TO:
        return [(first, second) for first in range(count) for second in range(first + 1, count)]
    pairs = set()
    for first in range(count):
        following = range(first + 1, min(first + NEIGHBORS + 1, count))
        pairs.update((first, second) for second in following if sequences[first] == sequences[second])
        # Half of them forward; the others come from those whom this one is forward of.
        steps = (round(step * count / (SPREAD + 1)) for step in range(1, SPREAD // 2 + 1))
        pairs.update(_ordered(first, (first + step) % count) for step in steps)
    return sorted(pairs)


def second_pairs(count: int, matching: Iterable[Pair], tried: Collection[Pair]) -> list[Pair]:
    """Untried pairs of pictures that match the same others, those with the most in common, at most SPREAD a picture."""
    matches = np.zeros((count, count), dtype=np.float32)
    for first, second in matching:
        matches[first, second] = matches[second, first] = 1.0
    common = np.triu(matches @ matches, 1)
    if tried:
        first, second = np.array(sorted(tried)).T
        common[first, second] = 0.0
    best = np.argsort(-common, axis=None, kind="stable")[: count * SPREAD // 2]
    rows, columns = np.unravel_index(best, common.shape)
    return sorted(
        (int(row), int(column)) for row, column in zip(rows, columns, strict=True) if common[row, column] >= MIN_COMMON
    )


def groups(count: int, matching: Iterable[Pair]) -> list[list[int]]:
    """The pictures that hang together through matches, the largest group first."""
    group = list(range(count))

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    for first, second in matching:
        low, high = sorted((root(first), root(second)))
        group[high] = low
    members: dict[int, list[int]] = {}
    for index in range(count):
        members.setdefault(root(index), []).append(index)
    return sorted(members.values(), key=len, reverse=True)


def _ordered(first: int, second: int) -> Pair:
    return (first, second) if first < second else (second, first)
