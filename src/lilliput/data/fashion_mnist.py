"""`fashion-mnist`: 60,000 + 10,000 grey images of clothes, 28x28, in IDX files (Xiao, Rasul and Vollgraf 2017)."""

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from lilliput.data.dataset import Part, Source
from lilliput.errors import DataError

USUAL_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE = 28
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_fashion_mnist(path: str | None) -> Source:
    """Read the four IDX files, each plain or with `.gz`, from `path` or from where Debian's package puts them.

    Raises:
        DataError: a file is missing, cut short, altered, or not of this data set.
    """
    folder = USUAL_FOLDER if path is None else Path(path)
    return Source(CLASSES, _read_part(folder, "train"), _read_part(folder, "test"))


def _read_part(folder: Path, part: str) -> Part:
    images_name, labels_name = FILES[part]
    images_path, labels_path = _find(folder, images_name), _find(folder, labels_name)
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{images_path}: images of {images.shape[1]}x{images.shape[2]} pixels, expected {SIDE}x{SIDE}")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: {len(labels)} labels for {len(images)} images in {images_path.name}")
    if labels.max() >= len(CLASSES):
        raise DataError(f"{labels_path}: label {labels.max()}, allowed: 0 to {len(CLASSES) - 1}")
    return Part(images[..., np.newaxis], labels.astype(np.int64))


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    names = ", ".join(f"{file}.gz" for pair in FILES.values() for file in pair)
    raise DataError(
        f"data 'fashion-mnist': no {name}[.gz] in {folder}; on Debian: apt install dataset-fashion-mnist; elsewhere "
        f"put {names} into one folder and set data.path to it"
    )


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes with the given number of dimensions, gzipped if its name ends in `.gz`.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each size as a big-endian
    unsigned 32-bit number, then the values; nothing may follow them.

    Raises:
        DataError: the file cannot be read, or is anything but that.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return _parse_idx(cast("BinaryIO", file), path, dimensions)
        with path.open("rb") as file:
            return _parse_idx(file, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); get the file again") from None


def _parse_idx(file: BinaryIO, path: Path, dimensions: int) -> NDArray[np.uint8]:
    header = file.read(4 + 4 * dimensions)
    magic = bytes((0, 0, 8, dimensions))
    if header[:4] != magic:
        raise DataError(f"{path}: starts with {header[:4].hex() or 'nothing'}, not an IDX file with {magic.hex()}")
    if len(header) != 4 + 4 * dimensions:
        raise DataError(f"{path}: cut short inside its header")
    shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4", offset=4))
    # In Python integers: the product of hostile sizes must not wrap around.
    expected = 1
    for size in shape:
        expected *= size
    if not 0 < expected < 1 << 31:
        raise DataError(f"{path}: its header says {shape}, which is empty or above 2 GiB")
    # One byte more than expected shows what follows the values without reading all of it.
    values = file.read(expected + 1)
    if len(values) != expected:
        found = "more follows" if len(values) > expected else f"{len(values)} are there"
        raise DataError(f"{path}: its header says {expected} values, {found}; get the file again")
    return np.frombuffer(bytearray(values), dtype=np.uint8).reshape(shape)
