"""Small image models, batches and settings for the tests of teachers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.compress.quantize import Quantization
from lilliput.config import LoopSettings, ModelSettings, QuantizeSettings, TeacherSettings
from lilliput.models.vit import ViT
from lilliput.train.calibration import random_calibration

CLASSES = ("a", "b", "c", "d")
SMALL = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 16}


def model(seed: int = 0, shape: tuple[int, int, int] = (8, 8, 1), classes: int = 4, **changes: Any) -> ViT:
    """Small, and with weights large enough for logits and attention to be far from uniform."""
    torch.manual_seed(seed)
    made = ViT(ModelSettings.model_validate(SMALL | changes), shape, classes)
    made.set_normalization(np.full(shape[2], 120.0, np.float32), np.full(shape[2], 70.0, np.float32))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def batch(count: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 4, generator=generator).softmax(dim=1)  # as after mixup
    return torch.randint(256, (count, 1, 8, 8), generator=generator).float(), targets


def settings(**distill: Any) -> LoopSettings:
    return LoopSettings(distill=TeacherSettings(model="elsewhere", **distill))


def value(loss: Tensor) -> float:
    return float(loss.detach())


def quantised_model() -> ViT:
    made = model(2)
    Quantization(QuantizeSettings()).attach(made, random_calibration(made))
    return made
