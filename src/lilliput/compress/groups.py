"""Edits that make the tensors of a ViT smaller. Each lists every tensor that it touches, so that one can read it before
it is made, and a test can compare it with what changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lilliput.config import LayerSettings, ModelSettings
from lilliput.models.layers import Attention, Linear
from lilliput.models.vit import ViT


@dataclass(frozen=True)
class Cut:
    """What one tensor loses: `indices` along `dim` of the parameter or buffer `name` of the module at path `module`
    ('' is the model); `shape` is the one before."""

    module: str
    name: str
    dim: int
    indices: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def path(self) -> str:
        """The tensor's name in the model's `state_dict`."""
        return f"{self.module}.{self.name}" if self.module else self.name

    @property
    def shape_after(self) -> tuple[int, ...]:
        return (*self.shape[: self.dim], self.shape[self.dim] - len(self.indices), *self.shape[self.dim + 1 :])


@dataclass(frozen=True)
class Group:
    """One edit: all tensors that it cuts, and the model's settings before and after it.

    It is an edit of the model as it was when the group was made: of groups made together only one can be removed. Where
    a `block` goes as a whole all of its tensors lose all rows, and the blocks behind it move up by a number.
    """

    name: str
    cuts: tuple[Cut, ...]
    before: ModelSettings
    after: ModelSettings
    block: int | None = None

    def __str__(self) -> str:
        width = max(len(cut.path) for cut in self.cuts)
        tensors = [
            f"  {cut.path:{width}}  {list(cut.shape)} -> {list(cut.shape_after) if all(cut.shape_after) else 'gone'}"
            for cut in self.cuts
        ]
        changes = [f"  settings: {change}" for change in _changes(self.before, self.after)]
        return "\n".join([self.name, *tensors, *changes])


def head_group(model: ViT, block: int, heads: Sequence[int]) -> Group:
    """Heads of a block: their rows of queries, keys and values, and the columns of `attn.proj` that read them. Its bias
    stays: it belongs to no head.

    At least one head of the block must be left, as for neurons, blocks and columns below.
    """
    layer, place = model.settings.resolved_layers()[block], f"blocks.{block}.attn"
    width = layer.num_heads * layer.head_dim
    columns = [head * layer.head_dim + offset for head in heads for offset in range(layer.head_dim)]
    rows = [part * width + column for part in range(3) for column in columns]  # q, then k, then v
    cuts = (
        _cut(model, f"{place}.qkv", "weight", 0, rows),
        _cut(model, f"{place}.qkv", "bias", 0, rows),
        _cut(model, f"{place}.proj", "weight", 1, columns),
    )
    after = _with_layer(model, block, {"num_heads": layer.num_heads - len(heads)})
    return Group(_name("head", heads, f" of block {block}"), cuts, model.settings, after)


def neuron_group(model: ViT, block: int, neurons: Sequence[int]) -> Group:
    """Hidden neurons of a block's feed-forward layer: rows of `fc1` and columns of `fc2`, whose bias stays."""
    layer, place = model.settings.resolved_layers()[block], f"blocks.{block}.mlp"
    cuts = (
        _cut(model, f"{place}.fc1", "weight", 0, neurons),
        _cut(model, f"{place}.fc1", "bias", 0, neurons),
        _cut(model, f"{place}.fc2", "weight", 1, neurons),
    )
    after = _with_layer(model, block, {"mlp_dim": layer.mlp_dim - len(neurons)})
    return Group(_name("neuron", neurons, f" of block {block}"), cuts, model.settings, after)


def block_group(model: ViT, block: int) -> Group:
    """A whole block, at every depth where it is run."""
    cuts = []
    for path, tensor in model.blocks[block].state_dict().items():
        module, _, name = f"blocks.{block}.{path}".rpartition(".")
        cuts.append(_cut(model, module, name, 0, range(len(tensor)), leave=0))
    settings, layers = model.settings, model.settings.resolved_layers()
    assert len(layers) > 1, "the last block stays"
    order = settings.order and tuple(i - (i > block) for i in settings.order if i != block)
    after = _changed(settings, layers=layers[:block] + layers[block + 1 :], order=order)
    return Group(f"block {block}", tuple(cuts), settings, after, block)


def column_group(model: ViT, columns: Sequence[int]) -> Group:
    """Columns of the residual stream: of all that is added to it, and of all that reads it.

    Norms take their mean and variance over fewer columns afterwards, so this is no edit that a mask could do as well.
    """
    places = [("patch_embed.proj", "weight", 0), ("patch_embed.proj", "bias", 0)]
    places += [("", name, 1) for name in ("distillation_token", "class_token") if getattr(model, name) is not None]
    places.append(("", "positions", 1))
    for block in range(len(model.blocks)):
        for name, reads in (("attn.qkv", True), ("attn.proj", False), ("mlp.fc1", True), ("mlp.fc2", False)):
            path = f"blocks.{block}.{name}"
            places += [(path, "weight", 1)] if reads else [(path, "weight", 0), (path, "bias", 0)]
        places += [(f"blocks.{block}.{norm}", name, 0) for norm in ("norm1", "norm2") for name in ("weight", "bias")]
    places += [("norm", "weight", 0), ("norm", "bias", 0)]
    places += [(name, "weight", 1) for name in ("head", "distillation_head") if getattr(model, name) is not None]
    cuts = tuple(_cut(model, module, name, dim, columns) for module, name, dim in places)
    settings = model.settings
    # How many heads there are, and how wide they are, no longer follows from the model's width.
    after = _changed(settings, layers=settings.resolved_layers(), embed_dim=settings.embed_dim - len(columns))
    return Group(_name("column", columns, " of the residual stream"), cuts, settings, after)


@torch.no_grad()
def remove(model: ViT, group: Group) -> None:
    """Make the edit, in place: the tensors, the sizes that modules know, and `model.settings`, from which the model
    reloads."""
    assert model.settings == group.before, "the group was made for another state of the model"
    # A mask or a quantiser on the stack would keep its own shape: the order of stages puts both later.
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    if group.block is not None:
        del model.blocks[group.block]
    else:
        for cut in group.cuts:
            _apply(model.get_submodule(cut.module), cut)
    attention = [module for module in model.modules() if isinstance(module, Attention)]
    for module, layer in zip(attention, group.after.resolved_layers(), strict=True):
        module.num_heads = layer.num_heads
    model.settings = group.after


def _apply(module: nn.Module, cut: Cut) -> None:
    old = getattr(module, cut.name)
    gone = set(cut.indices)
    kept = torch.tensor([i for i in range(old.shape[cut.dim]) if i not in gone], device=old.device)
    new = old.index_select(cut.dim, kept)
    setattr(module, cut.name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, Linear):
        assert module.input_multiplier is None, "its input's scales were found for all columns"
        module.out_features, module.in_features = module.weight.shape


def _cut(model: ViT, module: str, name: str, dim: int, indices: Sequence[int], leave: int = 1) -> Cut:
    tensor = getattr(model.get_submodule(module), name)
    assert isinstance(tensor, Tensor), f"{module}.{name} is no tensor"
    size = tensor.shape[dim]
    assert len(set(indices)) == len(indices) <= size - leave and all(0 <= i < size for i in indices)
    return Cut(module, name, dim, tuple(sorted(indices)), tuple(tensor.shape))


def _with_layer(model: ViT, block: int, changes: dict[str, int]) -> ModelSettings:
    layers = list(model.settings.resolved_layers())
    layers[block] = layers[block].model_copy(update=changes)
    return _changed(model.settings, layers=tuple(layers))


def _changed(settings: ModelSettings, **changes: object) -> ModelSettings:
    return settings.model_copy(update={**changes, "preset": None})


def _name(kind: str, indices: Sequence[int], of: str) -> str:
    return f"{kind}{'s' * (len(indices) > 1)} {', '.join(map(str, sorted(indices)))}{of}"


def _changes(before: ModelSettings, after: ModelSettings) -> list[str]:
    names = [name for name in ("preset", "embed_dim", "order") if getattr(before, name) != getattr(after, name)]
    changes = [f"{name} {getattr(before, name)} -> {getattr(after, name)}" for name in names]
    old, new = before.resolved_layers(), after.resolved_layers()
    if len(old) != len(new):
        return [*changes, f"blocks {len(old)} -> {len(new)}"]
    sizes = [
        f"layers[{block}].{name} {getattr(old[block], name)} -> {getattr(new[block], name)}"
        for block in range(len(old))
        for name in LayerSettings.model_fields
        if getattr(old[block], name) != getattr(new[block], name)
    ]
    return changes + sizes
