"""What models are run and trained on without labels: texts (`lilliput.data.text.Sequences`) and `Images` alike."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lilliput.data.text import Indices


class Examples(Protocol):
    """Inputs of a model, in batches."""

    @property
    def lengths(self) -> Indices:
        """How many tokens each example has in the model, int64 [n]."""
        ...

    def __len__(self) -> int: ...

    def padded(self, indices: Indices) -> tuple[Tensor, Tensor | None]:
        """Inputs [B, ...] of the examples with these numbers, and a mask, bool [B, T], False for padding; None: there
        is none."""
        ...


@dataclass(frozen=True)
class Images:
    """uint8 [n, height, width, channels], each of which is `tokens` tokens."""

    images: NDArray[np.uint8]
    tokens: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def lengths(self) -> Indices:
        return np.full(len(self.images), self.tokens, np.int64)

    def padded(self, indices: Indices) -> tuple[Tensor, None]:
        """Pixels 0..255, float32 [B, C, height, width]."""
        return torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2).float(), None


def forward(model: nn.Module, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """The model's outputs for what `padded` gives."""
    outputs: Tensor = model(inputs) if mask is None else model(inputs, mask)
    return outputs


def tokens_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rows of all real tokens: [B, T, D] -> [n, D]."""
    return x.flatten(0, -2) if mask is None else x[mask]
