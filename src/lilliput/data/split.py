"""Seeded, stratified splits: parts hold each class in proportion, are disjoint, and cover the whole."""

from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lilliput.data.dataset import ImageDataset, Labels, Part, Source
from lilliput.errors import DataError

if TYPE_CHECKING:
    from lilliput.config import DataSettings

Indices = NDArray[np.int64]


def split(name: str, source: Source, settings: "DataSettings") -> ImageDataset:
    """Draw the parts that the source lacks. A test part of its own stays as it is, in its order.

    Drawn parts come in a seeded random order, so that the first images of a part are a fair sample of it (`limit`).

    Raises:
        DataError: too few images for three parts that are not empty.
    """
    train, test = source.train, source.test
    if test is None:
        train, test = _draw(train, settings.test_fraction, settings.split_seed)
    train, validation = _draw(train, settings.validation_fraction, settings.split_seed)
    for part_name, part, field in (("test", test, "test_fraction"), ("validation", validation, "validation_fraction")):
        if len(part) == 0:
            raise DataError(
                f"data '{name}': {len(source.train)} images of {len(source.classes)} classes leave the {part_name} "
                f"part empty (each class keeps at least one training image); add images or raise data.{field}"
            )
    parts = (part.first(settings.limit) for part in (train, validation, test))
    return ImageDataset(name, source.classes, *parts)


def stratified_split(labels: Labels, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split indices 0..n-1 into (kept, drawn), both in a random order that depends on the seed and n alone.

    `drawn` holds ceil(n * fraction) indices; each class gives its exact share rounded down or up, but never its last
    image, so there may be fewer drawn where classes are tiny.
    """
    order = _random_order(len(labels), seed)
    counts = np.bincount(labels)
    quotas = _quotas(counts, fraction)
    is_drawn = np.zeros(len(labels), dtype=bool)
    for label, quota in enumerate(quotas):
        is_drawn[order[labels[order] == label][:quota]] = True
    return order[~is_drawn[order]], order[is_drawn[order]]


def _draw(part: Part, fraction: float, seed: int) -> tuple[Part, Part]:
    kept, drawn = stratified_split(part.labels, fraction, seed)
    return Part(part.images[kept], part.labels[kept]), Part(part.images[drawn], part.labels[drawn])


def _quotas(counts: NDArray[np.int64], fraction: float) -> list[int]:
    """How many of each class to draw: largest remainders, ties to the lower class."""
    # The decimal the user wrote, exactly: 0.07 * 100 in floating point is above 7, and would be rounded up to 8.
    share = Fraction(repr(fraction))
    exact = [int(count) * share for count in counts]
    quotas = [floor(value) for value in exact]
    missing = ceil(sum(exact)) - sum(quotas)
    by_remainder = sorted(range(len(exact)), key=lambda label: (quotas[label] - exact[label], label))
    for label in by_remainder:
        has_remainder = exact[label] > quotas[label]
        if missing and has_remainder and quotas[label] + 1 < counts[label]:
            quotas[label] += 1
            missing -= 1
    return quotas


def _random_order(count: int, seed: int) -> Indices:
    # The raw stream of PCG64 is fixed by numpy for all versions and machines; Generator.permutation is not.
    keys = np.random.PCG64(seed).random_raw(count)
    return np.argsort(keys, kind="stable").astype(np.int64)
