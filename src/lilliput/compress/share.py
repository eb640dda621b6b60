"""Sharing of blocks across depths (ALBERT; Lan et al. 2020, section 3.1): fewer parameters, the same arithmetic.

ALBERT trains shared blocks from the start. Here a trained model's neighbouring blocks become one, and the training of
the stage lets it recover.
"""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.compress.base import Claim, Model, Pass
from lilliput.config import ShareSettings
from lilliput.config.model import ModelSettings
from lilliput.errors import RecipeError
from lilliput.models.vit import ViT
from lilliput.program.program import Program
from lilliput.train.calibration import Calibration

EXAMPLES = 512


class Sharing(Pass):
    """Leaves `num_blocks` blocks: consecutive depths, as many for each block as can be, run the same one.

    A shared block starts as the first of those that it replaces, or as their mean: whichever gives the model the lower
    loss on training examples, where all blocks start in the same way.
    """

    def __init__(self, settings: ShareSettings) -> None:
        self.settings = settings

    def applies_to(self, model: ViT) -> list[str]:
        return [name for name, _ in model.named_parameters() if name.startswith("blocks.")]

    def attach(self, model: ViT, calibration: Calibration) -> None:
        """See `Pass.attach`.

        Raises:
            RecipeError: there are not more blocks than `num_blocks`, or some that would become one differ in size.
        """
        settings = model.settings
        runs = self._runs(settings)
        model.settings = _shared_settings(settings, runs)
        old = list(model.blocks)
        firsts = nn.ModuleList(copy.deepcopy(old[run[0]]) for run in runs)
        means = nn.ModuleList(_mean([old[index] for index in run]) for run in runs)
        losses = [_loss(model, blocks, calibration) for blocks in (firsts, means)]
        model.blocks = means if losses[1] < losses[0] else firsts

    def _runs(self, settings: ModelSettings) -> list[list[int]]:
        """For each new block, the present ones that its depths run."""
        blocks, wanted = len(settings.resolved_layers()), self.settings.num_blocks
        if blocks == 1:
            raise RecipeError("share: the model has one block, so none can be shared; drop the stage")
        if wanted >= blocks:
            raise RecipeError(f"share.num_blocks={wanted} must be below {blocks}, the number of blocks that there are")
        runs = _split(settings.resolved_order(), wanted)
        for run in runs:
            odd = next((index for index in run if _sizes(settings, index) != _sizes(settings, run[0])), None)
            if odd is not None:
                found = [n for n in range(1, blocks) if _equal(settings, _split(settings.resolved_order(), n))]
                allowed = f"possible: {found}" if found else "give all blocks the same sizes"
                raise RecipeError(
                    f"share.num_blocks={wanted}: blocks {run[0]} and {odd} would become one, but have other sizes "
                    f"({_told(settings, run[0])}; {_told(settings, odd)}); {allowed}"
                )
        return runs

    def claims(self, model: ViT) -> list[Claim]:
        blocks, depths = len(model.blocks), len(model.settings.resolved_order())
        detail = f"distinct blocks: {blocks} for {depths} depths, each stored once"
        return [Claim("shared", "share", detail, {"blocks": blocks, "depths": depths})]


def model_shared(model: Model, values: dict[str, Any]) -> bool:
    """Whether so many blocks serve so many depths."""
    return {"blocks": len(model.blocks), "depths": len(model.settings.resolved_order())} == values


def program_shared(program: Program, values: dict[str, Any]) -> bool:
    """The same, of what is in the file: weights of queries, keys and values, and attentions."""
    names = {tensor.name for tensor in program.tensors}
    blocks = sum(name.endswith((".attn.qkv.weight", ".attn.qkv.inner.weight")) for name in names)
    depths = sum(op.kind == "table_attention" for op in program.ops)
    return {"blocks": blocks, "depths": depths} == values


def _split(order: tuple[int, ...], num_blocks: int) -> list[list[int]]:
    """The blocks that are run at consecutive depths, in `num_blocks` parts whose lengths differ by one at most."""
    edges = [-(-part * len(order) // num_blocks) for part in range(num_blocks + 1)]
    return [list(order[start:end]) for start, end in pairwise(edges)]


def _sizes(settings: ModelSettings, index: int) -> tuple[object, dict[str, int]]:
    """Sizes of a block, and the ranks of its layers by their names inside it."""
    prefix = f"blocks.{index}."
    ranks = {name.removeprefix(prefix): rank for name, rank in settings.ranks.items() if name.startswith(prefix)}
    return settings.resolved_layers()[index], ranks


def _equal(settings: ModelSettings, runs: list[list[int]]) -> bool:
    return all(_sizes(settings, index) == _sizes(settings, run[0]) for run in runs for index in run)


def _told(settings: ModelSettings, index: int) -> str:
    layer, ranks = settings.resolved_layers()[index], _sizes(settings, index)[1]
    sizes = f"num_heads={layer.num_heads} head_dim={layer.head_dim} mlp_dim={layer.mlp_dim}"
    return f"{sizes} ranks={ranks}" if ranks else sizes


def _shared_settings(settings: ModelSettings, runs: list[list[int]]) -> ModelSettings:
    """The architecture with one block a run."""
    order = [index for index, run in enumerate(runs) for _ in run]
    ranks = {name: rank for name, rank in settings.ranks.items() if not name.startswith("blocks.")}
    for index, run in enumerate(runs):
        ranks |= {f"blocks.{index}.{name}": rank for name, rank in _sizes(settings, run[0])[1].items()}
    layers = tuple(settings.resolved_layers()[run[0]] for run in runs)
    return settings.model_copy(update={"preset": None, "layers": layers, "order": tuple(order), "ranks": ranks})


@torch.no_grad()
def _mean(blocks: list[nn.Module]) -> nn.Module:
    """A block whose every tensor is the mean of these blocks'."""
    mean = copy.deepcopy(blocks[0])
    states = [block.state_dict() for block in blocks]
    tensors: dict[str, Tensor] = {name: torch.stack([s[name] for s in states]).mean(dim=0) for name in states[0]}
    mean.load_state_dict(tensors)
    return mean


@torch.no_grad()
def _loss(model: ViT, blocks: nn.ModuleList, calibration: Calibration) -> float:
    """Mean loss of the model with these blocks."""
    model.blocks = blocks
    return float(torch.cat(list(calibration.losses(EXAMPLES))).mean())
