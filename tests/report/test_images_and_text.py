"""Small helpers of the page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lilliput.report import encode_image, text


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_encode_image_keeps_every_pixel(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(encode_image(image)))) as decoded:
        assert decoded.format == "PNG"
        np.testing.assert_array_equal(np.asarray(decoded).reshape(shape), image)


@pytest.mark.parametrize("image", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 2), np.uint8), np.zeros(4, np.uint8)])
def test_encode_image_refuses_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="image"):
        encode_image(image)


def test_numbers_as_people_read_them() -> None:
    assert text.count(1654824) == "1,654,824"
    assert text.percent(0.975) == "97.50 %"
    assert text.percent(0.6, 1) == "60.0 %"
    assert [text.short_bytes(size) for size in (0, 999, 1000, 9216, 220_416, 1_654_824, 2e9)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "9.22 kB",
        "220 kB",
        "1.65 MB",
        "2 GB",
    ]
    assert [text.duration(seconds) for seconds in (0.01, 7.44, 59.96, 75.3, 3600 * 2 + 61)] == [
        "< 0.1 s",
        "7.4 s",
        "1 min 0 s",
        "1 min 15 s",
        "2 h 1 min",
    ]
