"""Training an image classifier: augmented batches, cross-entropy with label smoothing, and a teacher where a stage has
one."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lilliput.config import AugmentSettings, LoopSettings
from lilliput.data import ImageDataset, Part
from lilliput.data.augment import augment
from lilliput.models.vit import ViT
from lilliput.train.loop import Place, derive_seed
from lilliput.train.teacher import distillation_loss


@dataclass(frozen=True)
class ImageClassification:
    """An `Objective` of `lilliput.train.loop`; with settings that have `distill` it needs the `teacher`, in evaluation
    mode."""

    data: ImageDataset
    augment: AugmentSettings
    seed: int
    teacher: ViT | None = None

    def batches(self, settings: LoopSettings) -> int:
        return max(1, len(self.data.train.labels) // settings.batch_size)

    def loss(self, model: nn.Module, settings: LoopSettings, place: Place, device: torch.device) -> Tensor:
        pixels, targets = (values.to(device) for values in self._batch(settings, place))
        model.train()
        if settings.distill is None:
            return F.cross_entropy(model(pixels), targets, label_smoothing=settings.label_smoothing)
        assert isinstance(model, ViT) and self.teacher is not None
        return distillation_loss(model, self.teacher, (pixels, targets), settings)

    def _batch(self, settings: LoopSettings, place: Place) -> tuple[Tensor, Tensor]:
        train = self.data.train
        generator = np.random.Generator(np.random.PCG64(derive_seed(self.seed, 0, place.epoch)))
        order = generator.permutation(len(train.labels))
        chosen = np.sort(order[place.index * settings.batch_size : (place.index + 1) * settings.batch_size])
        images, labels = torch.from_numpy(train.images[chosen]), torch.from_numpy(train.labels[chosen])
        # The last number is for the process, once several train.
        seed = derive_seed(self.seed, 1, place.epoch, place.index, 0)
        torch.manual_seed(seed)  # dropout
        return augment(images, labels, self.augment, len(self.data.classes), torch.Generator().manual_seed(seed))

    def evaluate(self, model: nn.Module, settings: LoopSettings) -> dict[str, float]:
        logits = predict(model, self.data.validation)
        labels = torch.from_numpy(self.data.validation.labels)
        return {
            "validation_loss": float(F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)),
            "validation_accuracy": float((logits.argmax(1) == labels).float().mean()),
        }


@torch.no_grad()
def predict(model: nn.Module, part: Part) -> Tensor:
    """Logits [n, num_classes] of a part, in evaluation mode and full precision, on the processor."""
    model.eval()
    return torch.cat([model(pixels).float().cpu() for pixels, _ in batches_of(model, part)])


def batches_of(model: nn.Module, part: Part, batch_size: int = 250) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels [B, C, height, width] and labels [B] of a part in its order, where the model is."""
    device = next(model.parameters()).device
    for start in range(0, len(part), batch_size):
        images, labels = (values[start : start + batch_size] for values in (part.images, part.labels))
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        yield pixels.to(device), torch.from_numpy(labels).to(device)
