import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.config import DataSettings
from lilliput.data.dataset import Part, Source
from lilliput.data.split import split, stratified_split
from lilliput.errors import DataError

label_lists = st.lists(st.integers(0, 4), min_size=2, max_size=200)
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32)


def numbered_part(labels: list[int]) -> Part:
    """Each image's four pixels spell its index, so that it can be recognised after a split."""
    indices = np.arange(len(labels), dtype="<u4").view(np.uint8).reshape(-1, 2, 2, 1)
    return Part(indices.copy(), np.array(labels, dtype=np.int64))


def indices_of(part: Part) -> list[int]:
    return [int(index) for index in part.images.reshape(-1, 4).copy().view("<u4")[:, 0]]


@given(label_lists, fractions, seeds)
def test_halves_are_disjoint_and_cover_everything(labels: list[int], fraction: float, seed: int) -> None:
    kept, drawn = stratified_split(np.array(labels), fraction, seed)
    assert sorted([*kept.tolist(), *drawn.tolist()]) == list(range(len(labels)))


@given(label_lists, fractions, seeds)
def test_every_class_gives_its_share_within_one(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels)
    kept, drawn = stratified_split(array, fraction, seed)
    for label in set(labels):
        share = fraction * labels.count(label)
        assert abs((array[drawn] == label).sum() - share) < 1 + 1e-9
        assert (array[kept] == label).any()  # never without a training image


@given(label_lists, fractions, seeds)
def test_same_seed_same_split(labels: list[int], fraction: float, seed: int) -> None:
    first = stratified_split(np.array(labels), fraction, seed)
    second = stratified_split(np.array(labels), fraction, seed)
    assert first[0].tolist() == second[0].tolist()
    assert first[1].tolist() == second[1].tolist()


@given(seeds)
def test_other_seed_other_split(seed: int) -> None:
    labels = np.arange(100) % 2
    assert stratified_split(labels, 0.5, seed)[1].tolist() != stratified_split(labels, 0.5, seed + 1)[1].tolist()


def test_a_split_is_the_same_on_every_machine() -> None:
    kept, drawn = stratified_split(np.arange(12) % 3, 0.25, seed=7)
    assert drawn.tolist() == [6, 11, 4]
    assert kept.tolist() == [3, 10, 9, 0, 2, 8, 7, 5, 1]


@pytest.mark.parametrize(
    ("count", "fraction", "drawn"), [(100, 0.07, 7), (1797, 0.2, 360), (1437, 0.1, 144), (60000, 0.1, 6000)]
)
def test_the_total_is_the_decimal_share_rounded_up(count: int, fraction: float, drawn: int) -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point.
    assert len(stratified_split(np.arange(count) % 10, fraction, 0)[1]) == drawn


def test_three_parts_are_disjoint_and_cover_the_source() -> None:
    source = Source(("a", "b"), numbered_part([0, 1] * 50), test=None)
    dataset = split("x", source, DataSettings(validation_fraction=0.25, test_fraction=0.2))
    parts = [indices_of(part) for part in (dataset.train, dataset.validation, dataset.test)]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert sorted(index for part in parts for index in part) == list(range(100))
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.labels.tolist() == [index % 2 for index in indices_of(part)]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_test_part_of_its_own_stays_untouched(seed: int) -> None:
    test = numbered_part([1, 0, 0])
    source = Source(("a", "b"), numbered_part([0, 1] * 10), test)
    dataset = split("x", source, DataSettings(split_seed=seed, test_fraction=0.9))
    assert indices_of(dataset.test) == [0, 1, 2]
    assert dataset.test.labels.tolist() == [1, 0, 0]
    assert len(dataset.train) + len(dataset.validation) == 20


def test_limit_keeps_the_first_of_each_part() -> None:
    source = Source(("a", "b"), numbered_part([0] * 50 + [1] * 50), test=None)
    whole = split("x", source, DataSettings())
    limited = split("x", source, DataSettings(limit=7))
    for name in ("train", "validation", "test"):
        assert indices_of(getattr(limited, name)) == indices_of(getattr(whole, name))[:7]
    # The source is sorted by class; its first seven after the split are not all of one class.
    assert set(limited.train.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(("labels", "part"), [([0, 1], "test"), ([0, 0, 1], "validation")])
def test_too_few_images_are_refused(labels: list[int], part: str) -> None:
    source = Source(("a", "b"), numbered_part(labels), test=None)
    with pytest.raises(DataError, match=rf"{len(labels)} images of 2 classes leave the {part} part empty"):
        split("tiny", source, DataSettings())
