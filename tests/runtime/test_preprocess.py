"""`load_image`: any size and mode becomes the model's pixels, and a bad file becomes one line that names it."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lilliput.errors import DataError
from lilliput.runtime.preprocess import load_image

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]], np.uint8)
LUMA = np.array([[76, 150, 29], [18, 48, 78]], np.uint8)  # 0.299 R + 0.587 G + 0.114 B
GREYS = np.array([[0, 50, 100], [150, 200, 255]], np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_colour(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(COLOURS))
    pixels = load_image(path, 2, 3, 3)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == COLOURS.tolist()
    grey = load_image(str(path), 2, 3, 1)
    assert grey.shape == (2, 3, 1)
    assert np.abs(grey[..., 0].astype(int) - LUMA).max() <= 1
    grey[0] = 0  # the caller's own


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", (40, 24), (200, 100, 50)), quality=95)
    assert np.abs(load_image(path, 24, 40, 3).astype(int) - [200, 100, 50]).max() <= 4


def test_grey(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREYS))
    assert load_image(path, 2, 3, 1)[..., 0].tolist() == GREYS.tolist()
    assert load_image(path, 2, 3, 3).tolist() == np.repeat(GREYS[..., None], 3, 2).tolist()


def test_one_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREYS).convert("1", dither=Image.Dither.NONE))
    assert load_image(path, 2, 3, 1)[..., 0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_palette(tmp_path: Path) -> None:
    path = save(tmp_path / "a.gif", Image.fromarray(COLOURS).quantize(6))
    assert mode_of(path) == "P"
    assert load_image(path, 2, 3, 3).tolist() == COLOURS.tolist()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_lie_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.array([[[90, 90, 90, 0], [90, 90, 90, 255]]], np.uint8), "RGBA")
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        image.putpalette([7, 7, 7, 90, 90, 90])
        path = save(tmp_path / "a.png", image, transparency=0)
    else:
        path = save(tmp_path / "a.png", image.convert(mode))
    assert mode_of(path) == mode
    assert load_image(path, 1, 2, 3).tolist() == [[[255] * 3, [90] * 3]]
    assert load_image(path, 1, 2, 1).tolist() == [[[255], [90]]]


def test_half_transparent(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert load_image(path, 1, 1, 1).item() == 127


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 128, 129], [256 * 100, 257 * 100, 65534, 65535]], np.uint16)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
    assert load_image(path, 2, 4, 1)[..., 0].tolist() == [[0, 1, 0, 1], [100, 100, 255, 255]]


def test_cmyk(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tiff", Image.fromarray(np.array([[[0, 0, 0, 0], [255, 255, 0, 0]]], np.uint8), "CMYK"))
    assert load_image(path, 1, 2, 3).tolist() == [[[255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_turned_upright(tmp_path: Path, suffix: str) -> None:
    """Orientation 6: stored lying on its left side, to be turned a quarter to the right."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # the left half is white, so upright the upper one is
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(
        tmp_path / f"a.{suffix}", Image.fromarray(stored), exif=exif, **({"quality": 95} if suffix != "tiff" else {})
    )
    pixels = load_image(path, 32, 16, 1)[..., 0]
    assert pixels[:14].min() > 250
    assert pixels[18:].max() < 5


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert load_image(path, 2, 2, 1).tolist() == [[[10], [10]], [[10], [10]]]


def test_resized_by_bilinear_averaging(tmp_path: Path) -> None:
    """Shrinking by four averages with a triangle: a constant stays itself, a step stays a step, nothing is skipped."""
    path = save(tmp_path / "flat.png", Image.new("RGB", (37, 23), (9, 99, 199)))
    assert (load_image(path, 8, 5, 3) == [9, 99, 199]).all()
    dots = np.zeros((32, 32), np.uint8)
    dots[::4, ::4] = 255
    shrunk = load_image(save(tmp_path / "dots.png", Image.fromarray(dots)), 8, 8, 1)
    assert np.abs(shrunk[1:-1, 1:-1].astype(int) - 255 // 16).max() <= 4
    wide = load_image(save(tmp_path / "wide.png", Image.fromarray(np.array([[0, 255]], np.uint8))), 1, 4, 1)
    assert wide.ravel().tolist() == [0, 64, 191, 255]


def test_the_same_file_gives_the_same_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(noise))
    pixels = load_image(path, 32, 32, 3)
    assert pixels.tobytes() == load_image(path, 32, 32, 3).tobytes()
    assert zlib.crc32(pixels.tobytes()) == 564314756  # on every machine


def png(width: int, height: int) -> bytes:
    """A PNG of one colour whose header may promise more than it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height))
    with pytest.raises(DataError, match=r"bomb.png: (too many pixels|cannot be decoded)"):
        load_image(path, 8, 8, 1)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_image(path, 8, 8, 3)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_files_that_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "vector.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    assert "there is no such file" in refused(tmp_path / "missing.png")
    assert "not a file" in refused(tmp_path)
    assert "the file is empty" in refused(tmp_path / "empty.png")
    assert "not an image" in refused(tmp_path / "text.png")
    assert "not an image" in refused(tmp_path / "vector.eps")  # Pillow would run Ghostscript on it


def test_modes_without_a_range(tmp_path: Path) -> None:
    floats = save(tmp_path / "a.tiff", Image.fromarray(np.array([[0.5]], np.float32)))
    assert "float pixels have no defined range" in refused(floats)
    long = save(tmp_path / "b.tiff", Image.fromarray(np.array([[70_000]], np.int32)))
    assert "pixels of 70000 to 70000" in refused(long)


def test_other_numbers_of_channels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS))
    with pytest.raises(DataError, match=r"a.png: an image cannot be read as 2 channels; allowed: 1 .* or 3"):
        load_image(path, 2, 3, 2)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tiff", "webp", "ppm"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere or with altered bytes: pixels or a DataError, nothing else; cut in half: a DataError."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    good = save(tmp_path / f"good.{suffix}", Image.fromarray(noise)).read_bytes()
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(good[: len(good) // 2])
    refused(path)
    for _ in range(60):
        data = bytearray(good)
        if rng.random() < 0.3:
            del data[int(rng.integers(1, len(data))) :]
        else:
            for position in rng.integers(0, len(data), 4):
                data[position] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert load_image(path, 8, 8, 3).shape == (8, 8, 3)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
