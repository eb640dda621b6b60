"""Global magnitude pruning on a cubic schedule (Zhu and Gupta 2017, eq. 1)."""

import torch
from torch import Tensor

from lilliput.compress.base import Claim, Pass
from lilliput.config import PruneSettings
from lilliput.models.stack import Mask, base_of, layer_of, push
from lilliput.models.vit import ViT


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
    scores = []
    for weight in weights.values():
        score = weight.detach().abs().flatten()
        kept = round(layer_floor * score.numel())
        if kept:
            score = score.clone()
            score[torch.topk(score, kept).indices] = float("inf")
        scores.append(score)
    flat = torch.cat(scores)
    removed = torch.sort(flat, stable=True).indices[: round(sparsity * flat.numel())]
    keep = torch.ones_like(flat)
    keep[removed] = 0.0
    parts = torch.split(keep, [weight.numel() for weight in weights.values()])
    return {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


class MagnitudePruning(Pass):
    """Zeros the smallest weights of all linear and projection layers under one global threshold."""

    def __init__(self, settings: PruneSettings) -> None:
        self.settings = settings

    def applies_to(self, model: ViT) -> list[str]:
        return [f"{name}.weight" for name in model.linears()]

    def attach(self, model: ViT) -> None:
        for linear in model.linears().values():
            push(linear, "weight", Mask(base_of(linear, "weight")))

    def before_step(self, model: ViT, step: int, total_steps: int) -> None:
        if step % self.settings.update_every == 0:
            self._update(model, cubic_sparsity(step, total_steps, self.settings))

    def _update(self, model: ViT, sparsity: float) -> None:
        linears = model.linears()
        # Masked weights are zeroed in the base after every step, so a weight that is gone stays gone.
        bases = {name: base_of(linear, "weight") for name, linear in linears.items()}
        masks = magnitude_masks(bases, sparsity, self.settings.layer_floor)
        for name, linear in linears.items():
            layer = layer_of(linear, "weight", Mask)
            assert layer is not None
            layer.mask.copy_(masks[name])
        apply_masks(model)

    def finish(self, model: ViT) -> None:
        self._update(model, self.settings.sparsity)

    def claims(self, model: ViT) -> list[Claim]:
        total = sum(base_of(linear, "weight").numel() for linear in model.linears().values())
        zeros = round(self.settings.sparsity * total)
        detail = f"at least {zeros} of {total} linear and projection weights are zero"
        return [Claim("sparsity", "prune", detail, {"zeros": zeros, "weights": total})]


@torch.no_grad()
def apply_masks(model: ViT) -> None:
    """Zero the masked weights in the base: momentum and decay would otherwise let them grow unseen."""
    for linear in model.linears().values():
        layer = layer_of(linear, "weight", Mask)
        if layer is not None:
            base_of(linear, "weight").mul_(layer.mask)
