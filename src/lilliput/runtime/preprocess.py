"""From an image file to the pixels that a model takes. Needs Pillow; `import lilliput` does not import this module."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lilliput.errors import DataError

# What Pillow may decode: none of these runs another program or reads another file, as some of its formats do.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MODES = {1: "L", 3: "RGB"}  # by channels
MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
MAX_16_BIT = 65535


def load_image(path: str | Path, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Read an image of any size and mode as uint8 [height, width, channels], channels 1 (grey) or 3 (colour).

    The same file gives the same pixels on every machine. In this order: the first frame of an animation; turned upright
    as its EXIF orientation says; 16 bits a channel scaled to 8; laid over white where it is transparent; made grey
    (ITU-R 601 luma) or colour; resized to height x width whatever its own proportions are (bilinear, smoothed where it
    shrinks), unless it has that size.

    Raises:
        DataError: the file is missing, empty, no image, corrupt, truncated, too large (more pixels than Pillow's
            `MAX_IMAGE_PIXELS`), or of a mode without a defined range (float); or `channels` is another number.
    """
    path = Path(path)
    if channels not in MODES:
        raise DataError(f"{path}: an image cannot be read as {channels} channels; allowed: 1 (grey) or 3 (colour)")
    if not path.is_file():
        what = "not a file" if path.exists() else "there is no such file"
        raise DataError(f"{path}: {what}; give the path of an image")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; give an image ({', '.join(FORMATS)})")
    try:
        image = _over_white(_eight_bits(_upright(path))).convert(MODES[channels])
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: too many pixels to be decoded safely ({error})") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, or a damaged one; allowed: {', '.join(FORMATS)}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise DataError(f"{path}: cannot be decoded: corrupt, truncated or of an unknown kind ({error})") from error
    return np.array(image, np.uint8).reshape(height, width, channels)


def _upright(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return ImageOps.exif_transpose(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey to 8 bits; this scales it."""
    if image.mode == "F":
        raise DataError("float pixels have no defined range; allowed: 8 or 16 bits a channel")
    if image.mode not in MODES_16_BIT:
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > MAX_16_BIT:
        raise DataError(f"pixels of {values.min()} to {values.max()}; allowed: 8 or 16 bits a channel")
    return Image.fromarray(((values * 255 + MAX_16_BIT // 2) // MAX_16_BIT).astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
