"""Settings of the data and of random changes of it."""

from typing import Annotated, Literal

from pydantic import Field

from lilliput.config.base import Settings

Side = Annotated[int, Field(ge=1, le=65536)]


class DataSettings(Settings):
    """Which data set, where it lies, and how it is split. Splits are seeded; the test set is never used for a
    choice."""

    name: Literal["digits", "fashion-mnist", "cifar10", "folder"] = "digits"
    path: str | None = Field(default=None, description="folder or archive; None: the usual place of that data set")
    validation_fraction: float = Field(default=0.1, gt=0.0, lt=1.0, description="of the training part")
    test_fraction: float = Field(
        default=0.2, gt=0.0, lt=1.0, description="where the data set has no test part of its own"
    )
    split_seed: int = Field(default=0, ge=0)
    image_size: tuple[Side, Side] | None = Field(
        default=None, description="(height, width); `folder`: size to resize to"
    )
    mode: Literal["L", "RGB"] | None = Field(default=None, description="`folder`: grey or colour; None: RGB")
    limit: int | None = Field(
        default=None, ge=1, description="use only the first images of each part (for quick looks)"
    )


class AugmentSettings(Settings):
    """Random changes of training images. All off by default."""

    crop_padding: int = Field(default=0, ge=0, le=1024, description="pixels of zero padding before a random crop")
    flip: bool = Field(default=False, description="mirror left-right with probability 1/2")
    randaugment_ops: int = Field(default=0, ge=0, le=4, description="RandAugment: operations an image")
    randaugment_magnitude: float = Field(default=9.0, ge=0.0, le=30.0)
    mixup: float = Field(default=0.0, ge=0.0, description="alpha of the Beta distribution; 0: off")
    cutmix: float = Field(default=0.0, ge=0.0, description="alpha of the Beta distribution; 0: off")
