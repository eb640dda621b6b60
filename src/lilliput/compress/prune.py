"""Global magnitude pruning, of weights or of whole blocks, on a cubic schedule (Zhu and Gupta 2017, eq. 1)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lilliput.compress.base import Claim, Pass
from lilliput.config import PruneSettings
from lilliput.models.stack import Mask, base_of, layer_of, push
from lilliput.models.vit import ViT
from lilliput.train.calibration import Calibration

TINY = 1e-30


def cubic_sparsity(step: int, total_steps: int, settings: PruneSettings) -> float:
    """s_t = s_f * (1 - (1 - (t - t0)/(t1 - t0))^3): 0 until t0, s_f from t1 on; the initial sparsity is 0."""
    start, end = settings.start_fraction * total_steps, settings.end_fraction * total_steps
    progress = min(1.0, max(0.0, (step - start) / max(end - start, 1.0)))
    return float(settings.sparsity * (1.0 - (1.0 - progress) ** 3))


def magnitude_masks(weights: dict[str, Tensor], sparsity: float, layer_floor: float) -> dict[str, Tensor]:
    """Masks that zero exactly `round(sparsity * total)` weights, the smallest |w| over all layers together.

    Every layer keeps its `layer_floor` largest weights whatever the global threshold is (collapse guard). Ties are
    broken by order, so the count is exact.
    """
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    return _keep_largest(scores, sparsity, layer_floor, least=0)


def block_masks(
    weights: dict[str, Tensor], sparsity: float, layer_floor: float, block: tuple[int, int], columns: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Masks that zero exactly `round(sparsity * total)` blocks, those of the least L2 norm over all layers together.

    The norm is per weight, so that a block that the matrix's edge cuts off is not the first to go, and relative to the
    layer's: the mean of a whole block varies little inside a layer, and much between layers (by how they started), so
    absolute norms would empty some layers and spare others. Every layer keeps its `layer_floor` largest blocks, and at
    least one.

    Args:
        weights: [N, K] of each layer.
        block: (outputs, inputs).
        columns: order of each layer's columns in the program, where the blocks lie.
    """
    scores = {}
    for name, weight in weights.items():
        squares = weight.detach()[:, columns[name]].square()
        means = block_sums(squares, block) / block_sums(torch.ones_like(squares), block)
        scores[name] = means / squares.mean().clamp_min(TINY)
    keep = _keep_largest(scores, sparsity, layer_floor, least=1)
    masks = {}
    for name, weight in weights.items():
        mask = keep[name].repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        masks[name] = torch.empty_like(weight)
        masks[name][:, columns[name]] = mask[: weight.shape[0], : weight.shape[1]]
    return masks


def block_sums(values: Tensor, block: tuple[int, int]) -> Tensor:
    """Sums over the blocks of [N, K] `values`: [ceil(N / outputs), ceil(K / inputs)]."""
    rows, cols = values.shape
    padded = torch.nn.functional.pad(values, (0, -cols % block[1], 0, -rows % block[0]))
    return padded.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0])).sum(dim=(1, 3))


def count_zero_blocks(weights: Iterable[Tensor], block: tuple[int, int]) -> tuple[int, int]:
    """(zero, all) blocks of weights [N, K] whose columns are in the program's order."""
    counts = [block_sums((weight != 0).float(), block) for weight in weights]
    return sum(int((count == 0).sum()) for count in counts), sum(count.numel() for count in counts)


def _keep_largest(scores: dict[str, Tensor], sparsity: float, floor: float, least: int) -> dict[str, Tensor]:
    """Ones and zeros in the shape of the scores: `round(sparsity * total)` zeros, the smallest of all layers together,
    but every layer's `floor` largest, and at least `least`, stay."""
    flat_scores = []
    for score in scores.values():
        flat = score.flatten()
        kept = max(round(floor * flat.numel()), least)
        if kept:
            flat = flat.clone()
            flat[torch.topk(flat, kept).indices] = float("inf")
        flat_scores.append(flat)
    flat = torch.cat(flat_scores)
    removed = torch.sort(flat, stable=True).indices[: round(sparsity * flat.numel())]
    keep = torch.ones_like(flat)
    keep[removed] = 0.0
    parts = torch.split(keep, [score.numel() for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


class MagnitudePruning(Pass):
    """Zeros the smallest weights (or blocks of them) of all linear and projection layers under one global threshold."""

    def __init__(self, settings: PruneSettings) -> None:
        self.settings = settings

    def applies_to(self, model: ViT) -> list[str]:
        return [f"{name}.weight" for name in model.linears()]

    def attach(self, model: ViT, calibration: Calibration) -> None:
        for linear in model.linears().values():
            push(linear, "weight", Mask(base_of(linear, "weight")))

    def before_step(self, model: ViT, step: int, total_steps: int) -> None:
        if step % self.settings.update_every == 0:
            self._update(model, cubic_sparsity(step, total_steps, self.settings))

    def _update(self, model: ViT, sparsity: float) -> None:
        linears = model.linears()
        # Masked weights are zeroed in the base after every step, so a weight that is gone stays gone.
        bases = {name: base_of(linear, "weight") for name, linear in linears.items()}
        floor, block = self.settings.layer_floor, self.settings.block
        if block is None:
            masks = magnitude_masks(bases, sparsity, floor)
        else:
            masks = block_masks(bases, sparsity, floor, block, model.program_columns())
        for name, linear in linears.items():
            layer = layer_of(linear, "weight", Mask)
            assert layer is not None
            layer.mask.copy_(masks[name])
        apply_masks(model)

    def finish(self, model: ViT) -> None:
        self._update(model, self.settings.sparsity)

    def claims(self, model: ViT) -> list[Claim]:
        bases = {name: base_of(linear, "weight") for name, linear in model.linears().items()}
        total, block = sum(base.numel() for base in bases.values()), self.settings.block
        if block is None:
            zeros = round(self.settings.sparsity * total)
        else:  # blocks at the edges have fewer weights, so what the masks left out is counted
            zeros = sum(int((base == 0).sum()) for base in bases.values())
        detail = f"at least {zeros} of {total} linear and projection weights are zero"
        claims = [Claim("sparsity", "prune", detail, {"zeros": zeros, "weights": total})]
        if block is not None:
            columns = model.program_columns()
            _, blocks = count_zero_blocks([base[:, columns[name]] for name, base in bases.items()], block)
            gone = round(self.settings.sparsity * blocks)
            detail = f"at least {gone} of {blocks} blocks of {block[0]} outputs x {block[1]} inputs are zero"
            claims.append(
                Claim("zero blocks", "prune", detail, {"zeros": gone, "blocks": blocks, "block": list(block)})
            )
        return claims


@torch.no_grad()
def apply_masks(model: ViT) -> None:
    """Zero the masked weights in the base: momentum and decay would otherwise let them grow unseen."""
    for linear in model.linears().values():
        layer = layer_of(linear, "weight", Mask)
        if layer is not None:
            base_of(linear, "weight").mul_(layer.mask)
