"""Images to measure with."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

GRIDS = (2, 3, 4, 6, 8)  # coarse patterns: patches differ from each other, as those of photographs do

RUN_IMAGES, CALIBRATION_IMAGES = 1024, 256
RANDOM_SEEDS = (1, 2)


@dataclass(frozen=True, eq=False)
class BenchImages:
    """uint8 [n, height, width, channels] each: to run and compare predictions on, and for the peers' quantisers."""

    run: NDArray[np.uint8]
    calibration: NDArray[np.uint8]
    source: str  # what they are, for people

    @classmethod
    def of(cls, run: NDArray[np.uint8], calibration: NDArray[np.uint8], source: str) -> Self:
        """The first of each."""
        return cls(run[:RUN_IMAGES], calibration[:CALIBRATION_IMAGES], source)

    @classmethod
    def random(cls, shape: tuple[int, int, int], why: str = "") -> Self:
        run, calibration = (
            random_images(count, shape, seed)
            for count, seed in zip((RUN_IMAGES, CALIBRATION_IMAGES), RANDOM_SEEDS, strict=True)
        )
        return cls(run, calibration, f"random images{why}")


def random_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Seeded coarse patterns with noise: uint8 [count, height, width, channels] of `shape`."""
    height, width, channels = shape
    rng = np.random.default_rng(seed)
    images = np.empty((count, height, width, channels), np.uint8)
    for index in range(count):
        grid = GRIDS[index % len(GRIDS)]
        colours = rng.integers(0, 256, (grid, grid, channels))
        rows, cols = np.arange(height) * grid // height, np.arange(width) * grid // width
        noise = rng.integers(-32, 33, (height, width, channels))
        images[index] = np.clip(colours[rows[:, None], cols] + noise, 0, 255)
    return images
