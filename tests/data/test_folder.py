from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lilliput.config import DataSettings
from lilliput.data import load
from lilliput.data.folder import load_folder
from lilliput.errors import DataError


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 6), value: int = 100) -> None:
    """An image of one value; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0]), value, dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert("RGB").convert(mode)
    assert image.mode == mode
    image.save(path)


def make_set(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 6, **how: Any) -> Path:
    for number, name in enumerate(classes):
        for index in range(count):
            save(root / name / f"{index}.png", value=60 * number + index, **how)
    return root


def settings(root: Path, **fields: Any) -> DataSettings:
    return DataSettings(name="folder", path=str(root), **fields)


def test_classes_are_the_sorted_folder_names(tmp_path: Path) -> None:
    source = load_folder(settings(make_set(tmp_path, ("zebra", "ant", "10", "9"))))
    assert source.classes == ("10", "9", "ant", "zebra")
    assert source.train.images.shape == (24, 6, 8, 3)
    assert source.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    # make_set gave the value 60 * (place in its list) + index to each image.
    assert source.train.images[:, 0, 0, 0].tolist() == [
        60 * place + index for place in (2, 3, 1, 0) for index in range(6)
    ]


def test_load_splits_the_folder(tmp_path: Path) -> None:
    dataset = load(settings(make_set(tmp_path, count=20), test_fraction=0.2, validation_fraction=0.25))
    assert dataset.classes == ("cat", "dog")
    for part, count in ((dataset.train, 12), (dataset.validation, 4), (dataset.test, 4)):
        assert np.bincount(part.labels).tolist() == [count, count]
        assert ((part.images[:, 0, 0, 0] >= 60) == (part.labels == 1)).all()


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), (None, 3)])
def test_every_image_mode_becomes_the_mode_asked_for(tmp_path: Path, mode: str | None, channels: int) -> None:
    make_set(tmp_path)
    for saved in ("L", "RGB", "RGBA", "P", "I;16", "1", "LA"):
        save(tmp_path / "cat" / f"mode {saved.replace(';', '')}.png", mode=saved, value=255)
    source = load_folder(settings(tmp_path, mode=mode))
    assert source.train.images.shape[1:] == (6, 8, channels)
    whites = [image for image in source.train.images if (image >= 254).all()]
    assert len(whites) == 7


def test_other_formats_and_capital_letters(tmp_path: Path) -> None:
    make_set(tmp_path, count=1)
    for name in ("a.jpg", "b.JPEG", "c.BMP", "d.gif", "e.tiff", "f.webp", "g.ppm"):
        save(tmp_path / "cat" / name)
    assert len(load_folder(settings(tmp_path)).train) == 9


def test_mixed_sizes_are_resized(tmp_path: Path) -> None:
    make_set(tmp_path)
    save(tmp_path / "cat" / "large.png", size=(50, 40))
    save(tmp_path / "dog" / "thin.png", size=(1, 90))
    source = load_folder(settings(tmp_path, image_size=(10, 12)))
    assert source.train.images.shape == (14, 10, 12, 3)


def test_photos_that_lie_on_their_side_are_turned_upright(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: the picture is 8 high and 6 wide
        Image.new("RGB", (8, 6)).save(tmp_path / name / "0.jpg", exif=exif)
        save(tmp_path / name / "1.png", size=(6, 8))
    assert load_folder(settings(tmp_path)).train.images.shape == (4, 8, 6, 3)


def test_an_image_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match=r"cat/0\.png: .*exceeds limit of 40 pixels"):
        load_folder(settings(tmp_path))


def test_mixed_sizes_without_a_size_are_refused(tmp_path: Path) -> None:
    make_set(tmp_path)
    save(tmp_path / "dog" / "large.png", size=(50, 40))
    with pytest.raises(
        DataError, match=r"2 sizes, for example 6x8 \(\w+/0\.png\), 40x50 \(dog/large\.png\); set data\.image_size"
    ):
        load_folder(settings(tmp_path))


@pytest.mark.parametrize("image_size", [None, (6, 8)])
@pytest.mark.parametrize("data", [b"", b"no image", "cut"])
def test_a_corrupt_image_is_named(tmp_path: Path, data: bytes | str, image_size: tuple[int, int] | None) -> None:
    make_set(tmp_path, size=(64, 64))
    bad = tmp_path / "dog" / "bad.png"
    save(bad, size=(64, 64))
    bad.write_bytes(data if isinstance(data, bytes) else bad.read_bytes()[:60])
    with pytest.raises(DataError, match=r"dog/bad\.png"):
        load_folder(settings(tmp_path, image_size=image_size))


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    make_set(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty: a class folder without images"):
        load_folder(settings(tmp_path))


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no sub-folders"):
        load_folder(settings(tmp_path))
    make_set(tmp_path, classes=("only",))
    with pytest.raises(DataError, match="single class, 'only'; at least two"):
        load_folder(settings(tmp_path))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load_folder(settings(tmp_path / "nowhere"))


def test_hidden_files_and_a_readme_are_ignored(tmp_path: Path) -> None:
    make_set(tmp_path)
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    source = load_folder(settings(tmp_path))
    assert source.classes == ("cat", "dog")
    assert len(source.train) == 12


def test_what_is_out_of_place_is_named(tmp_path: Path) -> None:
    make_set(tmp_path)
    stray = tmp_path / "cat" / "notes.txt"
    stray.write_text("not an image")
    with pytest.raises(DataError, match=r"cat/notes\.txt: not an image; allowed: \.bmp"):
        load_folder(settings(tmp_path))
    stray.unlink()
    (tmp_path / "cat" / "more").mkdir()
    with pytest.raises(DataError, match=r"cat/more: a folder inside a class folder"):
        load_folder(settings(tmp_path))
    (tmp_path / "cat" / "more").rmdir()
    save(tmp_path / "lost.png")
    with pytest.raises(DataError, match=r"lost\.png: an image beside the class folders"):
        load_folder(settings(tmp_path))
