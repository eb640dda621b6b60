"""Pruning by magnitude or movement, of weights, of N in every M, or of whole blocks, on a cubic schedule (Zhu and Gupta
2017, eq. 1)."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lilliput.compress.base import Claim, Pass
from lilliput.config import PruneSettings
from lilliput.errors import RecipeError
from lilliput.models.stack import Mask, base_of, layer_of, push
from lilliput.models.vit import ViT
from lilliput.train.calibration import Calibration

TINY = 1e-30


def cubic_sparsity(step: int, total_steps: int, settings: PruneSettings) -> float:
    """s_t = s_f * (1 - (1 - (t - t0)/(t1 - t0))^3): 0 until t0, s_f from t1 on; the initial sparsity is 0."""
    start, end = settings.start_fraction * total_steps, settings.end_fraction * total_steps
    progress = min(1.0, max(0.0, (step - start) / max(end - start, 1.0)))
    return float(settings.sparsity * (1.0 - (1.0 - progress) ** 3))


def weight_masks(scores: dict[str, Tensor], sparsity: float, settings: PruneSettings) -> dict[str, Tensor]:
    """Masks that zero the weights of least score: exactly `round(sparsity * total)` of all layers together, or that
    share of each layer.

    Under a global threshold every layer keeps its `layer_floor` largest (collapse guard). Ties are broken by order, so
    counts are exact.
    """
    return _keep_largest(scores, sparsity, settings.scope, settings.layer_floor)


def block_masks(
    weights: dict[str, Tensor], sparsity: float, settings: PruneSettings, columns: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Masks that zero exactly `round(sparsity * total)` blocks, those of the least L2 norm over all layers together (or
    that share of each layer's).

    The norm is per weight, so that a block that the matrix's edge cuts off is not the first to go, and relative to the
    layer's: the mean of a whole block varies little inside a layer, and much between layers (by how they started), so
    absolute norms would empty some layers and spare others. Under a global threshold every layer keeps its
    `layer_floor` largest blocks, and at least one.

    Args:
        weights: [N, K] of each layer.
        settings: `block` is (outputs, inputs).
        columns: order of each layer's columns in the program, where the blocks lie.
    """
    block = settings.block
    assert block is not None
    scores = {}
    for name, weight in weights.items():
        squares = weight.detach()[:, columns[name]].square()
        means = block_sums(squares, block) / block_sums(torch.ones_like(squares), block)
        scores[name] = means / squares.mean().clamp_min(TINY)
    keep = _keep_largest(scores, sparsity, settings.scope, settings.layer_floor, least=1)
    masks = {}
    for name, weight in weights.items():
        mask = keep[name].repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        masks[name] = torch.empty_like(weight)
        masks[name][:, columns[name]] = mask[: weight.shape[0], : weight.shape[1]]
    return masks


def block_sums(values: Tensor, block: tuple[int, int]) -> Tensor:
    """Sums over the blocks of [N, K] `values`: [ceil(N / outputs), ceil(K / inputs)]."""
    rows, cols = values.shape
    padded = pad(values, (0, -cols % block[1], 0, -rows % block[0]))
    return padded.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0])).sum(dim=(1, 3))


def count_zero_blocks(weights: Iterable[Tensor], block: tuple[int, int]) -> tuple[int, int]:
    """(zero, all) blocks of weights [N, K] whose columns are in the program's order."""
    counts = [block_sums((weight != 0).float(), block) for weight in weights]
    return sum(int((count == 0).sum()) for count in counts), sum(count.numel() for count in counts)


def pattern_masks(
    weights: dict[str, Tensor], share: float, settings: PruneSettings, columns: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Masks under which `round(share * total)` groups of M consecutive inputs keep only their N largest weights.

    First come the groups that lose the least magnitude: those of all layers together, or that share of each layer's. A
    last group of fewer inputs keeps `ceil(N * inputs / M)`. Ties are broken by order.

    Args:
        weights: [N, K] of each layer.
        settings: `pattern` is (N, M).
        columns: order of each layer's columns in the program, where inputs are consecutive.
    """
    assert settings.pattern is not None
    size = settings.pattern[1]
    kept, lost = {}, {}
    for name, weight in weights.items():
        magnitudes = weight.detach()[:, columns[name]].abs()
        kept[name] = _largest_of_groups(magnitudes, settings.pattern)
        lost[name] = block_sums(magnitudes * (1.0 - kept[name]), (1, size))
    waiting = _keep_largest(lost, share, settings.scope)
    masks = {}
    for name, weight in weights.items():
        whole = waiting[name].repeat_interleave(size, 1)[:, : weight.shape[1]]
        masks[name] = torch.empty_like(weight)
        masks[name][:, columns[name]] = torch.maximum(kept[name], whole)
    return masks


def _largest_of_groups(magnitudes: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Ones and zeros in the shape of the magnitudes [N, K]: what each group of consecutive inputs may keep."""
    inputs, size = magnitudes.shape[1], pattern[1]
    groups = pad(magnitudes, (0, -inputs % size)).unflatten(1, (-1, size))
    # Stable, so that padding comes behind every weight, also behind zeros.
    rank = groups.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (rank < _group_limits(magnitudes, pattern)[:, None]).to(magnitudes.dtype).flatten(1)[:, :inputs]


def _group_limits(weight: Tensor, pattern: tuple[int, int]) -> Tensor:
    """How many weights each group of a row of [N, K] may keep, [ceil(K / M)]."""
    starts = torch.arange(0, weight.shape[1], pattern[1], device=weight.device)
    lengths = (weight.shape[1] - starts).clamp(max=pattern[1])
    return (pattern[0] * lengths + pattern[1] - 1) // pattern[1]


def count_groups(weights: Iterable[Tensor], pattern: tuple[int, int]) -> tuple[int, int]:
    """(broken, all) groups of weights [N, K] whose columns are in the program's order: broken are those that keep more
    than the pattern allows."""
    broken = total = 0
    for weight in weights:
        counts = block_sums((weight != 0).float(), (1, pattern[1]))
        broken += int((counts > _group_limits(weight, pattern)).sum())
        total += counts.numel()
    return broken, total


def _keep_largest(
    scores: dict[str, Tensor], share: float, scope: str, floor: float = 0.0, least: int = 0
) -> dict[str, Tensor]:
    """Ones and zeros in the shape of the scores: `round(share * total)` zeros, the smallest of all layers together, but
    every layer's `floor` largest, and at least `least`, stay. With scope "layer": that share of each layer."""
    if scope == "layer":
        return {name: _keep_largest({name: score}, share, "global")[name] for name, score in scores.items()}
    flat_scores = []
    for score in scores.values():
        flat = score.flatten()
        kept = _guarded(flat.numel(), floor, least)
        if kept:
            flat = flat.clone()
            flat[torch.topk(flat, kept).indices] = float("inf")
        flat_scores.append(flat)
    flat = torch.cat(flat_scores)
    removed = torch.sort(flat, stable=True).indices[: round(share * flat.numel())]
    keep = torch.ones_like(flat)
    keep[removed] = 0.0
    parts = torch.split(keep, [score.numel() for score in scores.values()])
    return {name: part.reshape(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def _guarded(count: int, floor: float, least: int) -> int:
    """How many of a layer's weights or blocks stay whatever the global threshold is."""
    return max(round(floor * count), least)


class Pruning(Pass):
    """Zeros weights (or blocks of them, or all but N of every M) of all linear and projection layers: those of least
    magnitude, or of least movement.

    Movement pruning (Sanh et al. 2020, the hard form): a score beside each weight grows when training moves the weight
    away from zero, and the lowest scores are masked; a weight that is masked may come back while scores train. Unlike
    there, masks are renewed every `update_every` steps instead of each.
    """

    def __init__(self, settings: PruneSettings) -> None:
        self.settings = settings

    def applies_to(self, model: ViT) -> list[str]:
        return [f"{name}.weight" for name in model.linears()]

    def attach(self, model: ViT, calibration: Calibration) -> None:
        if self.settings.pattern is None:
            _refuse_emptying(model, self.settings)
        for linear in model.linears().values():
            push(linear, "weight", Mask(base_of(linear, "weight"), scored=self.settings.criterion == "movement"))

    def before_step(self, model: ViT, step: int, total_steps: int) -> None:
        # Also where the schedule ends, however short it is: what `finish` cuts no training heals.
        complete = min(math.ceil(self.settings.end_fraction * total_steps), total_steps - 1)
        if step % self.settings.update_every == 0 or step == complete:
            masks = self._masks(model, cubic_sparsity(step, total_steps, self.settings))
            self._set(model, masks)

    def _masks(self, model: ViT, sparsity: float) -> dict[str, Tensor]:
        layers, settings = mask_layers(model), self.settings
        # What is masked counts as zero, so it stays gone, also in an average of weights, where it is not zero yet.
        weights = {
            name: base_of(linear, "weight").detach() * layers[name].mask for name, linear in model.linears().items()
        }
        if settings.block is not None:
            return block_masks(weights, sparsity, settings, model.program_columns())
        if settings.pattern is not None:
            return pattern_masks(weights, sparsity / settings.sparsity, settings, model.program_columns())
        scores = {
            name: weights[name].abs() if layer.scores is None else layer.scores.detach()
            for name, layer in layers.items()
        }
        return weight_masks(scores, sparsity, settings)

    def _set(self, model: ViT, masks: dict[str, Tensor]) -> None:
        for name, layer in mask_layers(model).items():
            layer.mask.copy_(masks[name])
        apply_masks(model)

    def finish(self, model: ViT) -> None:
        layers, masks = mask_layers(model), self._masks(model, self.settings.sparsity)
        # Masks that are complete stay: scores may have moved since, but it is with these that the weights were trained.
        if _count_zeros(layer.mask for layer in layers.values()) != _count_zeros(masks.values()):
            self._set(model, masks)
        for layer in layers.values():
            layer.scores = None
        apply_masks(model)

    def claims(self, model: ViT) -> list[Claim]:
        masks = {name: layer.mask for name, layer in mask_layers(model).items()}
        zeros, total = _count_zeros(masks.values()), sum(mask.numel() for mask in masks.values())
        detail = f"at least {zeros:,} of {total:,} linear and projection weights are zero"
        claims = [Claim("sparsity", "prune", detail, {"zeros": zeros, "weights": total})]
        columns = model.program_columns()
        in_order = [mask[:, columns[name]] for name, mask in masks.items()]
        block, pattern = self.settings.block, self.settings.pattern
        if block is not None:
            gone, blocks = count_zero_blocks(in_order, block)
            detail = f"at least {gone:,} of {blocks:,} blocks of {block[0]} outputs x {block[1]} inputs are zero"
            values = {"zeros": gone, "blocks": blocks, "block": list(block)}
            claims.append(Claim("zero blocks", "prune", detail, values))
        if pattern is not None:
            _, groups = count_groups(in_order, pattern)
            detail = (
                f"at most {pattern[0]} of every {pattern[1]} consecutive inputs are not zero, in all {groups} groups"
            )
            claims.append(Claim("pattern", "prune", detail, {"pattern": list(pattern), "groups": groups}))
        return claims


def _refuse_emptying(model: ViT, settings: PruneSettings) -> None:
    """Raise if the settings' share cannot be met without taking all of a layer, or what its floor guards.

    Raises:
        RecipeError: says the largest sparsity that works.
    """
    block, unit, least = settings.block, "weights", 0
    counts = {name: linear.weight.numel() for name, linear in model.linears().items()}
    if block is not None:
        counts = {name: block_sums(linear.weight, block).numel() for name, linear in model.linears().items()}
        unit, least = "blocks", 1
    total = sum(counts.values())
    kept = sum(_guarded(count, settings.layer_floor, least) for count in counts.values())

    def emptied(sparsity: float) -> list[str]:
        if settings.scope == "layer":
            return [name for name, count in counts.items() if round(sparsity * count) >= count]
        return [] if round(sparsity * total) <= total - kept else ["all"]

    names = emptied(settings.sparsity)
    if not names:
        return
    if settings.scope == "layer":
        problem = f"would take all {counts[names[0]]} {unit} of layer '{names[0]}'"
    else:
        problem = (
            f"leaves {total - round(settings.sparsity * total)} of {total} {unit}, but the layers' guards keep {kept}"
        )
    works = [share / 1000 for share in range(1, 1000) if round(share / 1000 * total) and not emptied(share / 1000)]
    advice = f"at most {works[-1]:g} works" if works else f"no sparsity works with {unit} that large"
    raise RecipeError(f"prune.sparsity={settings.sparsity:g} with scope='{settings.scope}' {problem}; {advice}")


def mask_layers(model: ViT) -> dict[str, Mask]:
    """The mask of every linear and projection layer that has one."""
    layers = {name: layer_of(linear, "weight", Mask) for name, linear in model.linears().items()}
    return {name: layer for name, layer in layers.items() if layer is not None}


def _count_zeros(masks: Iterable[Tensor]) -> int:
    return sum(int((mask == 0).sum()) for mask in masks)


@torch.no_grad()
def apply_masks(model: ViT) -> None:
    """Zero the masked weights in the base: momentum and decay would otherwise let them grow unseen. Where scores still
    train they are left, because they may come back."""
    linears = model.linears()
    for name, layer in mask_layers(model).items():
        if layer.scores is None:
            base_of(linears[name], "weight").mul_(layer.mask)
