"""An image model, and images of a data set or a folder."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput import data
from lilliput.compress.base import Model
from lilliput.compress_checkpoint.subject import Checkpoint, Measured, Subject
from lilliput.compress_config import ImageCompressRecipe
from lilliput.config import DataSettings
from lilliput.data import ImageDataset, Part
from lilliput.data.dataset import Source
from lilliput.data.folder import SUFFIXES
from lilliput.data.split import split
from lilliput.errors import DataError, UserError
from lilliput.lower import lower
from lilliput.models.checkpoint import load_model
from lilliput.models.vit import ViT
from lilliput.program.program import Program
from lilliput.runtime.images import ImageSession
from lilliput.runtime.preprocess import load_image
from lilliput.runtime.session import Session
from lilliput.train.examples import Images

UNLABELLED = "unlabelled"  # the class of all images of a folder without sub-folders


class ImageSubject(Subject):
    """A ViT or DeiT, and images; the model does the normalisation.

    Raises:
        UserError: no images are given.
        DataError: the images cannot be used, or are of another shape than the model takes.
    """

    noun = "images"

    def __init__(self, checkpoint: Checkpoint, recipe: ImageCompressRecipe) -> None:
        assert isinstance(checkpoint.model, ViT)
        if recipe.data is None or "name" not in recipe.data.model_fields_set:
            raise UserError(
                "lil compress: no images; give --data with a folder, or a data set: digits, fashion-mnist, cifar10"
            )
        self.model, self.recipe, self.settings = checkpoint.model, recipe, recipe.data
        self.data = read_images(recipe.data, self.model.image_shape)
        self.sizes = {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")}
        self.labels = outputs_of_classes(self.data, self.model.labels)
        if self.labels is None:
            self.note = _why_no_accuracy(self.data.classes, self.model.labels)

    def fingerprint(self) -> list[str]:
        crc = 0
        for part in (self.data.train, self.data.validation, self.data.test):
            crc = zlib.crc32(part.images.tobytes(), zlib.crc32(part.labels.tobytes(), crc))
        return [json.dumps(self.data.classes), f"{crc:08x}"]

    def calibration(self) -> Images:
        return self._images(self.data.train.first(self.recipe.quantize.images))

    def validation(self) -> Images:
        return self._images(self.data.validation)

    def distillation(self) -> tuple[Images, Images]:
        return self._images(self.data.train.first(self.recipe.distill.images)), self.validation()

    def _images(self, part: Part) -> Images:
        return Images(part.images, len(self.model.positions))

    def load(self, folder: Path) -> ViT:
        return load_model(folder)

    def lower(self, model: Model, provenance: dict[str, Any]) -> Program:
        # In full, because a default may change and the test part must not; without places of this machine.
        trained_on = json.loads(self.settings.model_dump_json(exclude={"path", "limit"}))
        return lower(model, {"labels": list(self.model.labels), "provenance": provenance | {"data": trained_on}})

    def golden(self) -> NDArray[np.uint8]:
        height, width, channels = self.model.image_shape
        return self.data.validation.images[: self.recipe.export.golden].reshape(-1, height * width, channels)

    def measure(self, session: Session) -> Measured:
        assert isinstance(session, ImageSession)
        examples = self._images(self.data.test)
        return Measured(session.run(examples.images), examples, {"images": len(examples)})


def read_images(settings: DataSettings, shape: tuple[int, int, int]) -> ImageDataset:
    """The data set that `settings` name, for a model of images of `shape` (height, width, channels).

    A folder's images are read as `lil predict` reads them: resized, made grey or colour. It has a sub-folder for each
    class, or else the images themselves, without labels. Data sets are used as they are.

    Raises:
        DataError: the data set is missing, damaged or too small, or its images have another shape.
    """
    dataset = _read_folder(settings, shape) if settings.name == "folder" else data.load(settings)
    if dataset.image_shape != shape:
        found, wanted = ("x".join(map(str, one)) for one in (dataset.image_shape, shape))
        raise DataError(f"data '{dataset.name}': its images are {found}, the model takes {wanted}")
    return dataset


def _read_folder(settings: DataSettings, shape: tuple[int, int, int]) -> ImageDataset:
    size, mode = settings.image_size or shape[:2], settings.mode or ("L" if shape[2] == 1 else "RGB")
    settings = settings.model_copy(update={"image_size": size, "mode": mode})
    if settings.path is None or _has_folders(Path(settings.path)):
        return data.load(settings)
    part = _read_flat(Path(settings.path), (*size, 1 if mode == "L" else 3))
    return split(settings.name, Source((UNLABELLED,), part, None), settings)


def _has_folders(root: Path) -> bool:
    return any(entry.is_dir() for entry in _visible(root))


def _read_flat(root: Path, shape: tuple[int, int, int]) -> Part:
    files = _visible(root)
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(f"{file}: not an image; allowed: {' '.join(SUFFIXES)}, and hidden files (ignored)")
    if not files:
        raise DataError(f"data 'folder': {root} has no images; put some there, or into one sub-folder a class")
    images = np.empty((len(files), *shape), np.uint8)
    for index, file in enumerate(files):
        images[index] = load_image(file, *shape)
    return Part(images, np.zeros(len(files), np.int64))


def _visible(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"data 'folder': {root} cannot be read ({error.strerror}); give a folder of images") from None


def outputs_of_classes(dataset: ImageDataset, labels: tuple[str, ...]) -> NDArray[np.int64] | None:
    """The right output for each image of the test part, int64 [n]: the one whose label is the image's class. None: a
    class is not the label of exactly one output."""
    if any(labels.count(name) != 1 for name in dataset.classes):
        return None
    return np.array([labels.index(name) for name in dataset.classes], np.int64)[dataset.test.labels]


def _why_no_accuracy(classes: tuple[str, ...], labels: tuple[str, ...]) -> str:
    if classes == (UNLABELLED,):
        return "the images have no labels: accuracy is not measured, agreement with fp32 is"
    names = [f"{', '.join(some[:3])}{', ...' if len(some) > 3 else ''}" for some in (classes, labels)]
    return (
        f"accuracy is not measured: the data's classes ({names[0]}) are not all among the model's labels ({names[1]})"
    )
