import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from lilliput.config import DataSettings
from lilliput.data import channel_statistics, load
from lilliput.data.fashion_mnist import CLASSES, FILES, USUAL_FOLDER, load_fashion_mnist, read_idx
from lilliput.errors import DataError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, size=(count, 28, 28), dtype=np.uint8)


def labels_of(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint8) % 10


def write_set(folder: Path, compressed: bool) -> None:
    for (images_name, labels_name), count in zip(FILES.values(), (40, 20), strict=True):
        for name, array in ((images_name, images_of(count)), (labels_name, labels_of(count))):
            data = idx(array)
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)


@pytest.mark.parametrize("compressed", [True, False])
def test_the_four_files_are_read(tmp_path: Path, compressed: bool) -> None:
    write_set(tmp_path, compressed)
    source = load_fashion_mnist(str(tmp_path))
    assert source.classes == CLASSES
    assert source.test is not None
    for part, count in ((source.train, 40), (source.test, 20)):
        np.testing.assert_array_equal(part.images[..., 0], images_of(count))
        np.testing.assert_array_equal(part.labels, labels_of(count))


def test_splits_leave_the_test_part_alone(tmp_path: Path) -> None:
    write_set(tmp_path, compressed=True)
    dataset = load(DataSettings(name="fashion-mnist", path=str(tmp_path)))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [36, 4, 20]
    np.testing.assert_array_equal(dataset.test.images[..., 0], images_of(20))


@pytest.mark.skipif(not USUAL_FOLDER.is_dir(), reason=f"{USUAL_FOLDER} missing: apt install dataset-fashion-mnist")
def test_the_real_files() -> None:
    dataset = load(DataSettings(name="fashion-mnist"))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [54000, 6000, 10000]
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert np.bincount(dataset.train.labels).tolist() == [5400] * 10
    assert dataset.test.labels[:5].tolist() == [9, 2, 1, 1, 6]
    # The published statistics of the whole training part: 0.2860 and 0.3530 of full scale.
    mean, std = channel_statistics(dataset.train)
    assert mean[0] / 255 == pytest.approx(0.2860, abs=1e-3)
    assert std[0] / 255 == pytest.approx(0.3530, abs=1e-3)


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"apt install dataset-fashion-mnist.*t10k-labels-idx1-ubyte\.gz.*data\.path"):
        load_fashion_mnist(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with nothing"),
        (b"PK\x03\x04 a zip file", "not an IDX file"),
        (struct.pack(">BBBB2I", 0, 0, 8, 2, 1, 1) + b"1", "not an IDX file"),
        (struct.pack(">BBBB3I", 0, 0, 13, 3, 1, 1, 1) + b"1234", "not an IDX file"),
        (idx(images_of(2))[:9], "inside its header"),
        (idx(images_of(2))[:-1], "1568 values, 1567 are there"),
        (idx(images_of(2)) + b"x", "1568 values, more follows"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 28, 28), "empty or above"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 1 << 31, 1 << 31, 4) + b"x", "empty or above"),
    ],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes, message: str, compressed: bool) -> None:
    path = tmp_path / ("values.gz" if compressed else "values")
    path.write_bytes(gzip.compress(data) if compressed else data)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, dimensions=3)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, damage: str) -> None:
    data = bytearray(gzip.compress(idx(images_of(2))))
    if damage == "cut":
        del data[-30:]
    elif damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    else:
        data[:2] = b"no"
    path = tmp_path / "values.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match="get the file again"):
        read_idx(path, dimensions=3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 28, 27)), np.zeros(4), "images of 28x27 pixels"),
        (np.zeros((4, 28, 28)), np.zeros(3), "3 labels for 4 images"),
        (np.zeros((4, 28, 28)), np.array([0, 9, 10, 1]), "label 10, allowed: 0 to 9"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    write_set(tmp_path, compressed=False)
    images_name, labels_name = FILES["test"]
    (tmp_path / images_name).write_bytes(idx(images))
    (tmp_path / labels_name).write_bytes(idx(labels))
    with pytest.raises(DataError, match=message):
        load_fashion_mnist(str(tmp_path))
