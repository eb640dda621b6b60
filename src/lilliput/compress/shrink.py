"""Structured pruning: whole blocks, columns of the residual stream, heads and neurons go, and tensors get smaller."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lilliput.compress.base import Claim, Model, Pass
from lilliput.compress.groups import Group, block_group, column_group, head_group, neuron_group, remove
from lilliput.compress.importance import (
    column_importance,
    head_importance,
    least_important,
    losses_without,
    neuron_importance,
    normalized,
)
from lilliput.config import ShrinkSettings
from lilliput.errors import RecipeError
from lilliput.models.layers import Attention
from lilliput.models.vit import ViT
from lilliput.program.program import Program
from lilliput.train.calibration import Calibration

Shapes = dict[str, tuple[int, ...]]


class Shrinking(Pass):
    """Removes what the model needs least, in this order: blocks, columns, heads, neurons.

    Blocks go one by one, each time the one without which the loss is least. Columns go at once. Heads and neurons go in
    `steps` steps, those of least normalised importance over all blocks together (Michel et al. 2019, section 4.1),
    which is found anew before each step or once. Shares are of what the blocks that stay have.
    """

    def __init__(self, settings: ShrinkSettings) -> None:
        self.settings = settings

    def applies_to(self, model: ViT) -> list[str]:
        names = {cut.path for group in self._examples(model) for cut in group.cuts}
        return [name for name, _ in model.named_parameters() if name in names]

    def _examples(self, model: ViT) -> list[Group]:
        """One group for each kind and block that the pass may touch."""
        blocks, settings = range(len(model.blocks)), self.settings
        layers = model.settings.resolved_layers()
        groups = [block_group(model, block) for block in blocks if settings.blocks and len(blocks) > 1]
        if settings.embed_dim is not None and settings.embed_dim < model.settings.embed_dim:
            groups.append(column_group(model, [0]))
        groups += [head_group(model, b, [0]) for b in blocks if settings.heads and layers[b].num_heads > 1]
        return groups + [neuron_group(model, b, [0]) for b in blocks if settings.neurons and layers[b].mlp_dim > 1]

    def attach(self, model: ViT, calibration: Calibration) -> None:
        """Do all of it: nothing is left for later.

        Raises:
            RecipeError: so many blocks, heads, neurons or columns are not there or would leave nothing; or the model
                has layers that are products of two; says what is possible.
        """
        settings, examples = self.settings, self.settings.examples
        _refuse(model, settings)
        for _ in range(settings.blocks):
            losses = losses_without(model, calibration, examples)
            remove(model, block_group(model, losses.index(min(losses))))
        if settings.embed_dim is not None:
            gone = model.settings.embed_dim - settings.embed_dim
            columns = column_importance(model, calibration, examples).sort(stable=True).indices[:gone]
            remove(model, column_group(model, columns.tolist()))
        self._thin(model, settings.heads, head_group, lambda: head_importance(model, calibration, examples))
        self._thin(model, settings.neurons, neuron_group, lambda: neuron_importance(model, calibration, examples))

    def _thin(
        self,
        model: ViT,
        share: float,
        group: Callable[[ViT, int, list[int]], Group],
        importance: Callable[[], list[Tensor]],
    ) -> None:
        """Remove a share of all heads or neurons, in steps."""
        if not share:
            return
        scores = normalized(importance())
        total, gone = round(share * sum(map(len, scores))), 0
        for step in range(1, self.settings.steps + 1):
            count = round(total * step / self.settings.steps) - gone
            if not count:
                continue
            if gone and self.settings.reestimate:
                scores = normalized(importance())
            for block, indices in enumerate(least_important(scores, count)):
                if indices:
                    remove(model, group(model, block, indices))
                    kept = [i for i in range(len(scores[block])) if i not in indices]
                    scores[block] = scores[block][kept]
            gone += count

    def claims(self, model: ViT) -> list[Claim]:
        layers, width = model.settings.resolved_layers(), model.settings.embed_dim
        heads, neurons = [layer.num_heads for layer in layers], [layer.mlp_dim for layer in layers]
        values = {
            "embed_dim": width,
            "layers": [layer.model_dump() for layer in layers],
            "order": list(model.settings.resolved_order()),
        }
        detail = f"{len(layers)} blocks of {_range(heads)} heads and {_range(neurons)} neurons, {width} wide"
        return [Claim("shapes", "shrink", detail, values)]


def _refuse(model: ViT, settings: ShrinkSettings) -> None:
    """Before anything is removed: what the settings cannot have."""
    if model.settings.ranks:
        name = min(model.settings.ranks)
        raise RecipeError(
            f"shrink: layer {name} is a product of two (model.ranks), and heads, neurons and columns are cut out of "
            "whole ones; leave model.ranks out, and put the stage 'factorize' after 'shrink'"
        )
    layers, order, width = model.settings.resolved_layers(), model.settings.resolved_order(), model.settings.embed_dim
    if settings.blocks and len(order) > len(layers):
        raise RecipeError(
            f"shrink.blocks={settings.blocks}: blocks are shared here ({len(order)} depths run {len(layers)}), so that "
            "one is several depths; use share.num_blocks for fewer, or a model of less depth"
        )
    if settings.blocks >= len(layers):
        raise RecipeError(
            f"shrink.blocks={settings.blocks}: the model has {len(layers)} and one stays; at most {len(layers) - 1}"
        )
    if settings.embed_dim is not None and settings.embed_dim >= width:
        raise RecipeError(f"shrink.embed_dim={settings.embed_dim}: the model is {width} wide; at most {width - 1}")
    left = len(layers) - settings.blocks
    _refuse_share("heads", settings.heads, sorted(layer.num_heads for layer in layers)[:left])
    _refuse_share("neurons", settings.neurons, sorted(layer.mlp_dim for layer in layers)[:left])


def _refuse_share(name: str, share: float, sizes: list[int]) -> None:
    """`sizes`: of each block that is left; where they differ, of the smallest, as any may be left."""
    total = sum(sizes)
    gone, most = round(share * total), total - len(sizes)
    if gone > most:
        raise RecipeError(
            f"shrink.{name}={share} takes {gone} of {total} {name}, but each block keeps one ({len(sizes)} blocks); "
            f"at most {math.floor(1000 * most / total) / 1000}"
        )
    if share and not gone:
        least = math.ceil(1000 / total) / 1000
        raise RecipeError(f"shrink.{name}={share} takes none of {total} {name}; at least {least}")


def model_shapes(model: Model, values: dict[str, Any]) -> bool:
    """Whether settings, modules and tensors of a model have the sizes of the claim `shapes`."""
    if not isinstance(model, ViT) or model.settings.embed_dim != values["embed_dim"]:
        return False
    settings = model.settings
    layers, order = [layer.model_dump() for layer in settings.resolved_layers()], list(settings.resolved_order())
    attention = [module for module in model.modules() if isinstance(module, Attention)]
    heads = [(module.num_heads, module.head_dim) for module in attention]
    same = heads == [(layer["num_heads"], layer["head_dim"]) for layer in values["layers"]]
    shapes = {f"{name}.weight": tuple(linear.weight.shape) for name, linear in model.linears().items()}
    shapes["positions"] = tuple(model.positions.shape)
    return same and (layers, order) == (values["layers"], values["order"]) and _shapes_hold(shapes, values)


def program_shapes(program: Program, values: dict[str, Any]) -> bool:
    """Whether a program's tensors and heads have the sizes of the claim `shapes`."""
    heads = [
        (op.attributes["num_heads"], op.attributes["head_dim"]) for op in program.ops if op.kind == "table_attention"
    ]
    layers = [values["layers"][block] for block in values["order"]]
    same = heads == [(layer["num_heads"], layer["head_dim"]) for layer in layers]
    return same and _shapes_hold({tensor.name: (tensor.rows, tensor.cols) for tensor in program.tensors}, values)


def _shapes_hold(shapes: Shapes, values: dict[str, Any]) -> bool:
    width = values["embed_dim"]
    expected = {}
    for block, layer in enumerate(values["layers"]):
        inner, place = layer["num_heads"] * layer["head_dim"], f"blocks.{block}"
        expected[f"{place}.attn.qkv"] = (3 * inner, width)
        expected[f"{place}.attn.proj"] = (width, inner)
        expected[f"{place}.mlp.fc1"] = (layer["mlp_dim"], width)
        expected[f"{place}.mlp.fc2"] = (width, layer["mlp_dim"])
    if any(_matrix_shape(shapes, name) != shape for name, shape in expected.items()):
        return False
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    # Both ends of the residual stream; the positions are a table of their own.
    ends = [shapes.get("positions"), _matrix_shape(shapes, "head")]
    return len(blocks) == len(values["layers"]) and all(end is not None and end[1] == width for end in ends)


def _matrix_shape(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    """(outputs, inputs) of a layer, or of the two that it has been made a product of since; None: there is none."""
    if f"{name}.inner.weight" in shapes and f"{name}.outer.weight" in shapes:
        return shapes[f"{name}.outer.weight"][0], shapes[f"{name}.inner.weight"][1]
    return shapes.get(f"{name}.weight")


def _range(sizes: list[int]) -> str:
    least, most = min(sizes), max(sizes)
    return str(least) if least == most else f"{least} to {most}"
