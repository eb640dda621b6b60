"""An image data set in memory: three parts, the names of the classes, and what is counted from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """Images with their labels.

    images: uint8 [n, height, width, channels]; labels: int64 [n], each an index into the data set's classes.
    """

    images: Pixels
    labels: Labels

    def __post_init__(self) -> None:
        assert self.images.dtype == np.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.dtype == np.int64 and self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, limit: int | None) -> "Part":
        """The first `limit` examples (all where None)."""
        return self if limit is None else Part(self.images[:limit], self.labels[:limit])

    def spread(self, count: int) -> "Part":
        """At most `count` examples, evenly from the first to the last."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(np.int64))
        return Part(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as its files hold it, before any split; `test` is None where it has no test part of its own."""

    classes: tuple[str, ...]
    train: Part
    test: Part | None


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images split for training, for choices (validation) and for the final number (test)."""

    name: str
    classes: tuple[str, ...]
    train: Part
    validation: Part
    test: Part

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels), the same for every image."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def channel_statistics(part: Part) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel, in pixel units 0..255.

    Counted exactly: histograms of integers, then float64. A channel that never varies gets the deviation 1, so that
    dividing by it is harmless. Give the training part only: validation and test images must not leak into it.

    Returns: mean float32 [channels], std float32 [channels].
    """
    channels = part.images.shape[3]
    levels = np.arange(256, dtype=np.float64)
    mean = np.empty(channels)
    std = np.empty(channels)
    for channel in range(channels):
        counts = np.bincount(part.images[..., channel].reshape(-1), minlength=256)
        total = counts.sum()
        mean[channel] = (counts * levels).sum() / total
        std[channel] = np.sqrt((counts * (levels - mean[channel]) ** 2).sum() / total)
    std[std == 0.0] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def summary(dataset: ImageDataset) -> dict[str, Any]:
    """What the data set holds, as plain values for JSON.

    Keys: name, classes, image ([h, w, c]), train / validation / test (numbers of images), by_class (for each part the
    number of images of each class), mean and std (of the training part, per channel, in pixel units).
    """
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    mean, std = channel_statistics(dataset.train)
    return {
        "name": dataset.name,
        "classes": list(dataset.classes),
        "image": list(dataset.image_shape),
        **{name: len(part) for name, part in parts.items()},
        "by_class": {
            name: np.bincount(part.labels, minlength=len(dataset.classes)).tolist() for name, part in parts.items()
        },
        "mean": [round(float(value), 4) for value in mean],
        "std": [round(float(value), 4) for value in std],
    }
