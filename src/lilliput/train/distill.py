"""Distillation of a model from the one it was made from, on texts or images without labels (Hinton et al. 2015; hidden
states as in Sun et al. 2020 and Jiao et al. 2020)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lilliput.compress_config import DistillSettings
from lilliput.data.text import Indices, shuffled_batches, sorted_batches
from lilliput.train.examples import Examples, forward, tokens_of
from lilliput.train.loop import Place, derive_seed

TOKENS = 4096  # of a batch without gradients, padding included


class Distillation:
    """An `Objective` of `lilliput.train.loop`: errors of the outputs and, weighted, of the hidden states.

    Each error is relative to the size of what is to be matched, so that the weights mean the same for every model:
    `(1 - cosine) + |s - t|^2 / |t|^2` of the outputs (logits or pooled vectors), and `|s - t|^2 / |t|^2` of the hidden
    states of all tokens, averaged over what goes into the first block and what comes out of each.

    Args:
        teacher: in evaluation mode; it is not changed.
        train: what is learned from.
        validation: what is watched.
        seed: of the order of the examples.
    """

    def __init__(self, teacher: nn.Module, train: Examples, validation: Examples, seed: int) -> None:
        self.teacher, self.train, self.validation, self.seed = teacher, train, validation, seed
        self.expected = outputs(teacher, validation)
        self._epoch = lru_cache(maxsize=1)(self._draw)

    def _draw(self, epoch: int, batch_size: int) -> list[Indices]:
        return shuffled_batches(self.train.lengths, batch_size, derive_seed(self.seed, 0, epoch))

    def batches(self, settings: DistillSettings) -> int:
        return max(1, len(self.train) // settings.batch_size)

    def loss(self, model: nn.Module, settings: DistillSettings, place: Place, device: torch.device) -> Tensor:
        inputs, mask = self.train.padded(self._epoch(place.epoch, settings.batch_size)[place.index])
        inputs, mask = inputs.to(device), None if mask is None else mask.to(device)
        self.teacher.to(device)
        model.eval()  # without dropout: it would be noise that the teacher's outputs do not have
        with torch.no_grad(), hidden_states(self.teacher) as expected:
            target = forward(self.teacher, inputs, mask)
        with hidden_states(model) as states:
            output = forward(model, inputs, mask)
        loss = (1.0 - F.cosine_similarity(output, target, dim=-1)).mean() + relative_error(output, target)
        if settings.hidden_weight:
            errors = [
                relative_error(tokens_of(s, mask), tokens_of(t, mask)) for s, t in zip(states, expected, strict=True)
            ]
            loss = loss + settings.hidden_weight * torch.stack(errors).mean()
        return loss

    def evaluate(self, model: nn.Module, settings: DistillSettings) -> dict[str, float]:
        found = outputs(model, self.validation)
        cosine = float(F.cosine_similarity(found, self.expected, dim=-1).mean())
        error = float(relative_error(found, self.expected))
        return {"validation_loss": 1.0 - cosine + error, "validation_cosine": cosine}


def relative_error(x: Tensor, target: Tensor) -> Tensor:
    """Squared difference of all entries together, relative to the target's squares."""
    return (x - target).square().sum() / target.square().sum().clamp_min(1e-12)


@contextmanager
def hidden_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within: what goes into the first block of `model` and what comes out of each that is run, of the last forward
    pass. [B, T, D] each."""
    blocks = model.get_submodule("blocks")
    states: list[Tensor] = []

    def enter(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not states:
            states.append(inputs[0])

    with ExitStack() as hooks:
        for block in blocks.children():
            hooks.callback(block.register_forward_pre_hook(enter).remove)
            hooks.callback(block.register_forward_hook(lambda m, i, output: states.append(output)).remove)
        yield states


@torch.no_grad()
def outputs(model: nn.Module, examples: Examples) -> Tensor:
    """Outputs of all examples in their order, [n, outputs], in evaluation mode, on the processor."""
    device = next(model.parameters()).device
    model.eval()
    rows: dict[int, Tensor] = {}
    with parametrize.cached():
        for batch in sorted_batches(examples.lengths, TOKENS):
            inputs, mask = examples.padded(batch)
            found = forward(model, inputs.to(device), None if mask is None else mask.to(device))
            rows |= zip(batch.tolist(), found.float().cpu(), strict=True)
    return torch.stack([rows[index] for index in range(len(examples))])
