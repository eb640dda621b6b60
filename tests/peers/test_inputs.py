"""Inputs survive their files; batches wrap; parts cover a batch once, sorted and padded."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput.peers.choose import in_order, in_parts
from lilliput.peers.inputs import Division, Inputs, Part, batch_of, divisions, lengths_vary, load, parts_of, save

IMAGES = np.arange(3 * 2 * 4 * 1, dtype=np.uint8).reshape(3, 2, 4, 1)
SEQUENCES = [np.arange(1, 1 + length, dtype=np.uint32) for length in (5, 1, 3, 5, 2)]


@pytest.mark.parametrize("inputs", [IMAGES, SEQUENCES])
def test_files(inputs: Inputs, tmp_path: Path) -> None:
    back = load(save(inputs, str(tmp_path / "inputs")))
    assert len(back) == len(inputs)
    for one, other in zip(back, inputs, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_batches_wrap_around() -> None:
    np.testing.assert_array_equal(batch_of(IMAGES, 2, 3), IMAGES[[2, 0, 1]])
    assert [len(ids) for ids in batch_of(SEQUENCES, 3, 4)] == [5, 2, 5, 1]


def test_parts_of_images_are_slices() -> None:
    parts = parts_of(IMAGES, 2)
    assert [part.rows.tolist() for part in parts] == [[0, 1], [2]]
    assert parts[0].arrays[0].shape == (2, 1, 2, 4) and parts[0].arrays[0].dtype == np.float32


def test_parts_of_texts_are_sorted_and_padded() -> None:
    first, second, last = parts_of(SEQUENCES, 2)
    assert [part.rows.tolist() for part in (first, second, last)] == [[1, 4], [2, 0], [3]]
    ids, mask = second.arrays
    assert ids.tolist() == [[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_texts_alone_have_no_mask_unless_it_is_asked_for() -> None:
    assert [len(part.arrays) for part in parts_of(SEQUENCES, 1)] == [1] * 5
    assert [part.arrays[0].shape for part in parts_of(SEQUENCES, 1)] == [(1, 1), (1, 2), (1, 3), (1, 5), (1, 5)]
    assert all(part.arrays[1].all() for part in parts_of(SEQUENCES, 1, masked=True))


def test_the_whole_batch_keeps_its_order() -> None:
    (part,) = parts_of(SEQUENCES, 5)
    assert part.rows.tolist() == [0, 1, 2, 3, 4]
    assert part.arrays[1].sum(axis=1).tolist() == [5, 1, 3, 5, 2]


def test_divisions() -> None:
    assert divisions(IMAGES, 1, 1) == [Division(1)]
    assert divisions(IMAGES, 32, 2) == [Division(32), Division(16, 2)]
    assert divisions(IMAGES, 32, 3) == [Division(32)]
    assert divisions(SEQUENCES, 1, 2) == [Division(1)]
    assert divisions(SEQUENCES, 64, 2) == [Division(1), Division(1, 2), Division(8), Division(8, 2), Division(64)]
    assert [lengths_vary(IMAGES, 2), lengths_vary(SEQUENCES, 1), lengths_vary(SEQUENCES, 2)] == [False, False, True]


def lengths_of(part: Part) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = part.arrays[1].sum(axis=1, keepdims=True).astype(np.float32)
    return lengths


@pytest.mark.parametrize("requests", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_outputs_come_in_the_order_of_the_batch(size: int, requests: int) -> None:
    parts = parts_of(SEQUENCES, size, masked=True)
    calls = [partial(lengths_of, part) for part in parts]
    assert np.asarray(in_parts(parts, calls, requests)()).tolist() == [[5], [1], [3], [5], [2]]
    assert in_order(parts, [call() for call in calls]).tolist() == [[5], [1], [3], [5], [2]]
