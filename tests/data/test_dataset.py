import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lilliput.data import ImageDataset, Part, channel_statistics, summary, write_contact_sheet
from lilliput.errors import FailureError


def random_part(count: int, shape: tuple[int, int, int], classes: int) -> Part:
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, size=(count, *shape), dtype=np.uint8)
    return Part(images, np.arange(count, dtype=np.int64) % classes)


def dataset_of(shape: tuple[int, int, int] = (5, 7, 3), classes: int = 3) -> ImageDataset:
    names = tuple(f"class {number}" for number in range(classes))
    parts = [random_part(count, shape, classes) for count in (12, 4, 5)]
    return ImageDataset("made", names, *parts)


def test_statistics_equal_numpy_in_float64() -> None:
    part = random_part(50, (6, 4, 3), 2)
    mean, std = channel_statistics(part)
    assert mean.dtype == std.dtype == np.float32
    pixels = part.images.astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_statistics_of_a_constant_channel_can_be_divided_by() -> None:
    images = np.zeros((3, 2, 2, 2), dtype=np.uint8)
    images[..., 1] = np.arange(3, dtype=np.uint8).reshape(3, 1, 1)
    mean, std = channel_statistics(Part(images, np.zeros(3, dtype=np.int64)))
    assert mean.tolist() == [0.0, 1.0]
    assert std[0] == 1.0
    assert std[1] == np.float32(np.sqrt(2 / 3))


def test_summary_counts_and_is_json() -> None:
    dataset = dataset_of()
    found = json.loads(json.dumps(summary(dataset)))
    assert {key: found[key] for key in ("name", "image", "train", "validation", "test")} == {
        "name": "made",
        "image": [5, 7, 3],
        "train": 12,
        "validation": 4,
        "test": 5,
    }
    assert found["classes"] == ["class 0", "class 1", "class 2"]
    assert found["by_class"] == {"train": [4, 4, 4], "validation": [2, 1, 1], "test": [2, 2, 1]}
    mean, std = channel_statistics(dataset.train)
    assert found["mean"] == pytest.approx(mean.tolist(), abs=1e-3)
    assert found["std"] == pytest.approx(std.tolist(), abs=1e-3)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (5, 7, 3), (100, 3, 1)])
def test_contact_sheet_shows_the_samples(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    dataset = dataset_of(shape)
    whites = Part(np.full_like(dataset.train.images, 255), dataset.train.labels)
    empty = ImageDataset("made", dataset.classes, whites, dataset.validation, dataset.test)
    colours = []
    for number, shown in enumerate((dataset, empty)):
        path = tmp_path / f"sheet{number}.png"
        write_contact_sheet(shown, path, columns=4)
        with Image.open(path) as sheet:
            assert sheet.format == "PNG"
            colours.append({colour for _, colour in sheet.getcolors(1 << 24) or []})
    samples = {tuple(np.broadcast_to(pixel, 3).tolist()) for pixel in dataset.train.images[0].reshape(-1, shape[2])}
    if max(shape) <= 64:  # enlarged without smoothing: every pixel value is there
        assert samples <= colours[0]
    assert len(colours[0] - colours[1]) > 2


def test_contact_sheet_survives_few_samples_and_odd_names(tmp_path: Path) -> None:
    part = random_part(1, (4, 4, 1), 2)
    write_contact_sheet(ImageDataset("x", ("\u732b", "b"), part, part, part), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 10 * 64
        assert sheet.height > 2 * 64


def test_contact_sheet_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FailureError, match=r"sheet\.png"):
        write_contact_sheet(dataset_of(), tmp_path / "file" / "sheet.png")
