"""Images inside the page: PNG bytes as base64."""

import base64
import io

import numpy as np
from numpy.typing import NDArray


def encode_image(image: NDArray[np.uint8]) -> str:
    """PNG of one uint8 image, as base64 text (no `data:` prefix).

    `image` is [h, w], [h, w, 1] (grey), [h, w, 3] (colour) or [h, w, 4] (colour and opacity); anything else is an
    AssertionError, because only our own data comes here.
    """
    from PIL import Image

    assert image.dtype == np.uint8, f"image dtype {image.dtype}, expected uint8"
    pixels = image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
    assert pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4)), f"image shape {image.shape}"
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
