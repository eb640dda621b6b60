"""`folder`: one sub-folder of images per class, any size and mode.

The sorted names of the sub-folders are the classes. Hidden files and folders (names that start with a dot) are ignored
everywhere, and so are files beside the class folders that are not images (a README, say). Anything else out of place is
an error that names it: an image left out by mistake would be worse.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from lilliput.data.dataset import Part, Source
from lilliput.errors import DataError
from lilliput.runtime.preprocess import FORMATS, load_image

if TYPE_CHECKING:
    from lilliput.config import DataSettings

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LISTED_SIZES = 3
TURNED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF: the file's rows are the picture's columns


def load_folder(settings: "DataSettings") -> Source:
    """Read every image, resized to `image_size` where that is set, as grey (mode L) or colour (RGB, the default).

    Raises:
        DataError: no folder, fewer than two classes, an empty class, a file that is no image or is corrupt, or images
            of different sizes and no `image_size`.
    """
    if settings.path is None:
        raise DataError("data 'folder' needs data.path: a folder with one sub-folder of images per class")
    root = Path(settings.path)
    by_class = _find_images(root)
    files = [file for images in by_class.values() for file in images]
    height, width = settings.image_size or _common_size(root, files)
    channels = 1 if settings.mode == "L" else 3
    images = np.empty((len(files), height, width, channels), dtype=np.uint8)
    for index, file in enumerate(files):
        images[index] = load_image(file, height, width, channels)
    labels = np.repeat(np.arange(len(by_class), dtype=np.int64), [len(images) for images in by_class.values()])
    return Source(tuple(by_class), Part(images, labels), test=None)


def _find_images(root: Path) -> dict[str, list[Path]]:
    """The sorted images of each class, by class name in sorted order."""
    if not root.is_dir():
        raise DataError(f"data 'folder': {root} is not a folder; data.path needs a sub-folder of images per class")
    folders = []
    for entry in _visible(root):
        if entry.is_dir():
            folders.append(entry)
        elif entry.suffix.lower() in SUFFIXES:
            raise DataError(f"{entry}: an image beside the class folders; move it into the folder of its class")
    if not folders:
        raise DataError(f"data 'folder': {root} has no sub-folders; put the images of each class into one of its own")
    if len(folders) == 1:
        raise DataError(f"data 'folder': {root} has a single class, {folders[0].name!r}; at least two are needed")
    return {folder.name: _images_of(folder) for folder in folders}


def _images_of(folder: Path) -> list[Path]:
    entries = _visible(folder)
    for entry in entries:
        if entry.is_dir():
            raise DataError(f"{entry}: a folder inside a class folder; allowed: images")
        if entry.suffix.lower() not in SUFFIXES:
            raise DataError(f"{entry}: not an image; allowed: {' '.join(SUFFIXES)}, and hidden files (ignored)")
    if not entries:
        raise DataError(f"{folder}: a class folder without images; add some or remove it")
    return entries


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def _common_size(root: Path, files: list[Path]) -> tuple[int, int]:
    """(height, width) of all images, from their headers alone."""
    first_of_size: dict[tuple[int, int], Path] = {}
    for file in files:
        first_of_size.setdefault(_size(file), file)
    if len(first_of_size) > 1:
        examples = [
            f"{h}x{w} ({file.parent.name}/{file.name})" for (h, w), file in list(first_of_size.items())[:LISTED_SIZES]
        ]
        raise DataError(
            f"data 'folder': images in {root} have {len(first_of_size)} sizes, for example {', '.join(examples)}; "
            "set data.image_size = [height, width] to resize them (lil data: --size HEIGHT WIDTH)"
        )
    return next(iter(first_of_size))


def _size(file: Path) -> tuple[int, int]:
    """(height, width) as load_image would give them: upright, as the EXIF orientation says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation) in TURNED_ORIENTATIONS
                return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # a damaged header makes Pillow raise OSError, SyntaxError, struct.error, ...
        raise DataError(f"{file}: cannot be read as an image ({error})") from None
