"""Image data sets, loaded whole into memory and split with a seed. numpy only: augmentation (torch) is in `augment`."""

from typing import TYPE_CHECKING

from lilliput.data.cifar10 import load_cifar10
from lilliput.data.dataset import ImageDataset, Part, Source, channel_statistics, summary
from lilliput.data.digits import load_digits
from lilliput.data.fashion_mnist import load_fashion_mnist
from lilliput.data.sheet import write_contact_sheet
from lilliput.data.split import split
from lilliput.errors import DataError

if TYPE_CHECKING:
    from lilliput.config import DataSettings

__all__ = ["ImageDataset", "Part", "channel_statistics", "load", "summary", "write_contact_sheet"]


def load(settings: "DataSettings") -> ImageDataset:
    """Load the data set that the settings name, and split it.

    Raises:
        DataError: the data set is missing, damaged or too small, or a setting does not apply to it.
    """
    return split(settings.name, _load_source(settings), settings)


def _load_source(settings: "DataSettings") -> Source:
    if settings.name == "folder":
        # Only here, because Pillow and the runtime are of no use to the other data sets.
        from lilliput.data.folder import load_folder

        return load_folder(settings)
    for field in ("image_size", "mode"):
        if getattr(settings, field) is not None:
            raise DataError(f"data.{field} is only for 'folder'; the images of '{settings.name}' are used as they are")
    if settings.name == "digits":
        if settings.path is not None:
            raise DataError("data.path: 'digits' comes with scikit-learn and has no files; drop data.path")
        return load_digits()
    if settings.name == "fashion-mnist":
        return load_fashion_mnist(settings.path)
    assert settings.name == "cifar10", settings.name
    return load_cifar10(settings.path)
