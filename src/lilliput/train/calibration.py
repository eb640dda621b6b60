"""Training examples that a pass looks at a model with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.data import Part
from lilliput.models.vit import ViT
from lilliput.train.images import batches_of, predict


@dataclass(frozen=True)
class Calibration:
    """Examples evenly spread over a training set.

    `forward(n)` puts `n` of them through the model, without gradients; `losses(n)` gives the loss of each (against its
    label), batch by batch, [B], with its graph. Both in evaluation mode.
    """

    forward: Callable[[int], object]
    losses: Callable[[int], Iterator[Tensor]]


def calibration(model: nn.Module, part: Part) -> Calibration:
    """Examples of `part` for `model`: as many as are asked for, or all."""

    def losses(count: int) -> Iterator[Tensor]:
        model.eval()
        for pixels, labels in batches_of(model, part.spread(count)):
            yield F.cross_entropy(model(pixels), labels, reduction="none")

    return Calibration(lambda count: predict(model, part.spread(count)), losses)


def random_calibration(model: ViT, examples: int = 16, seed: int = 0) -> Calibration:
    """Random images with random labels, for a model that is not to be used: to see whether a pass can be applied."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (examples, *model.image_shape), np.uint8)
    return calibration(model, Part(images, generator.integers(0, model.num_classes, examples)))
