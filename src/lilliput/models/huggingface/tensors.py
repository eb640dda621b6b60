"""Our parameters under Hugging Face's names, in both directions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.models.checkpoint import CheckpointError, check_finite
from lilliput.models.encoder import BottleneckBlock, TextEncoder
from lilliput.models.huggingface.families import FamilyNames, Names
from lilliput.models.vit import ViT

KINDS = ("weight", "bias")  # what a module has
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMED = 4  # how many tensors an error names


@dataclass(frozen=True)
class Slot:
    """One parameter of ours and the tensors it is stacked from."""

    ours: str
    theirs: tuple[str, ...]


def slots_of(model: TextEncoder | ViT, names: Names, group_size: int = 1) -> list[Slot]:
    """Every parameter of the model that the table `names` names. `group_size`: ALBERT's layers in a group."""
    slots: list[Slot] = []
    for ours, theirs in names.items():
        for places in _places(model, ours, group_size):
            name = ours.format(**places)
            spelled = tuple(one.format(**places) for one in ((theirs,) if isinstance(theirs, str) else theirs))
            value = value_of(model, name)
            if isinstance(value, Tensor):
                slots.append(Slot(name, spelled))
            elif value is not None:
                slots += [Slot(f"{name}.{kind}", tuple(f"{one}.{kind}" for one in spelled)) for kind in KINDS]
    return slots


def _places(model: TextEncoder | ViT, ours: str, group_size: int) -> list[dict[str, int]]:
    """What the counters in a name of the table run over."""
    if "{i}" not in ours:
        return [{}]
    blocks = [{"i": i, "g": i // group_size, "j": i % group_size} for i in range(len(model.blocks))]
    if "{k}" not in ours:
        return blocks
    places: list[dict[str, int]] = []
    for block, place in zip(model.blocks, blocks, strict=True):
        assert isinstance(block, BottleneckBlock)
        places += [place | {"k": k} for k in range(len(block.stacked))]
    return places


def value_of(model: nn.Module, name: str) -> Any:
    """A parameter as its stack produces it, a module, or None."""
    parent, _, last = name.rpartition(".")
    return getattr(model.get_submodule(parent), last)


class Checkpoint:
    """The tensors of a file, by their names without the family's prefix.

    Args:
        folder: named in errors.
        names: the family's.
        tensors: as they are in the file.

    Raises:
        CheckpointError: several of them are one by these names.
    """

    def __init__(self, folder: Path, names: FamilyNames, tensors: dict[str, Tensor]) -> None:
        self.folder, self.names = folder, names
        self.tensors = {self.bare(name): tensor for name, tensor in tensors.items()}
        if len(self.tensors) < len(tensors):
            bare = [self.bare(name) for name in tensors]
            twice = [name for name, own in zip(tensors, bare, strict=True) if bare.count(own) > 1]
            self._refuse(twice, "several tensors for one place")

    def bare(self, name: str) -> str:
        """Without prefix, and in today's spelling: files made from TensorFlow's call a norm's vectors gamma, beta."""
        name = name.removeprefix(self.names.prefix)
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name

    def add(self, tensors: dict[str, Tensor]) -> None:
        """Tensors that the file leaves out because they follow from the configuration.

        Raises:
            CheckpointError: the file has one of them.
        """
        self._refuse([name for name in tensors if self.bare(name) in self.tensors], "not expected")
        self.tensors |= {self.bare(name): tensor for name, tensor in tensors.items()}

    def fill(self, model: TextEncoder | ViT, slots: list[Slot], buffers: dict[str, Tensor]) -> tuple[str, ...]:
        """Give the model (it may be on the meta device) these tensors, as float32, and its buffers.

        Returns:
            The names of those that the model has no use for.

        Raises:
            CheckpointError: tensors are missing, unexpected, ill-shaped or of another type, or are not finite.
        """
        own = {name: tensor for name, tensor in model.state_dict().items() if name not in buffers}
        assert {slot.ours for slot in slots} == own.keys(), "the table of names does not cover the model"
        used = {name: self.bare(name) for slot in slots for name in slot.theirs}
        self._refuse([name for name, bare in used.items() if bare not in self.tensors], "missing")
        unused = sorted(self.tensors.keys() - set(used.values()))
        self._refuse([name for name in unused if not name.startswith(self.names.ignored)], "not expected")
        state = dict(buffers)
        for slot in slots:
            shape = to_file(model, slot.ours, own[slot.ours]).shape
            part = torch.Size((shape[0] // len(slot.theirs), *shape[1:]))
            stacked = torch.cat([self._take(name, part) for name in slot.theirs])
            state[slot.ours] = _from_file(model, slot.ours, stacked, own[slot.ours].shape)
        model.load_state_dict(state, assign=True)
        return tuple(unused)

    def _refuse(self, names: list[str], why: str) -> None:
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            listed = ", ".join(names[:NAMED]) + more
            raise CheckpointError(f"model in {self.folder}: {why} in its weights: {listed}")

    def _take(self, name: str, shape: torch.Size) -> Tensor:
        tensor, where = self.tensors[self.bare(name)], f"model in {self.folder}: tensor {name}"
        if tensor.dtype not in FLOATS:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise CheckpointError(f"{where} is {str(tensor.dtype).removeprefix('torch.')}; allowed: {allowed}")
        if tensor.shape != shape:
            raise CheckpointError(f"{where} has shape {list(tensor.shape)}, expected {list(shape)}")
        tensor = tensor.to(torch.float32)
        check_finite({name: tensor}, str(self.folder))
        return tensor


def tensors_for_file(model: TextEncoder | ViT, slots: list[Slot]) -> dict[str, Tensor]:
    """What the model computes with, under Hugging Face's names: masks and quantisers are applied."""
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for slot in slots:
            value = to_file(model, slot.ours, value_of(model, slot.ours).detach().cpu())
            for name, part in zip(slot.theirs, value.chunk(len(slot.theirs)), strict=True):
                tensors[name] = part.clone(memory_format=torch.contiguous_format)
    return tensors


def to_file(model: TextEncoder | ViT, name: str, value: Tensor) -> Tensor:
    """A parameter in the layout that it has in a file."""
    if isinstance(model, ViT):
        if name in ("class_token", "distillation_token", "positions"):
            return value[None]
        if name == "patch_embed.proj.weight":  # columns run (c, ky, kx), as in a convolution's weight
            patch = model.settings.patch_size
            return value.unflatten(1, (-1, patch, patch))
    elif name == "positions" and model.settings.family == "roberta":
        return torch.cat([value.new_zeros(position_offset(model), value.shape[1]), value])
    return value


def _from_file(model: TextEncoder | ViT, name: str, value: Tensor, shape: torch.Size) -> Tensor:
    if isinstance(model, TextEncoder) and name == "positions" and model.settings.family == "roberta":
        value = value[position_offset(model) :].clone()
    return value.reshape(shape)


def position_offset(model: TextEncoder) -> int:
    """Rows of RoBERTa's positions before the first token's: they belong to padding, and are zero in what we write."""
    assert model.settings.pad_id is not None
    return model.settings.pad_id + 1
