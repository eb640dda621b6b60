"""Edits that make tensors smaller: each lists all that it touches, and leaves what a mask would leave."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lilliput.compress.groups import Group, block_group, column_group, head_group, neuron_group, remove
from lilliput.compress.prune import Pruning
from lilliput.config import LayerSettings, ModelSettings, PruneSettings, StemConvSettings
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.layers import Linear
from lilliput.models.vit import ViT
from lilliput.train.calibration import random_calibration

WIDTH, IMAGE, CLASSES = 22, (8, 12, 3), 7  # no other size of a model below is 22
LAYERS = (LayerSettings(num_heads=3, head_dim=5, mlp_dim=26), LayerSettings(num_heads=4, head_dim=3, mlp_dim=17))
BASE = ModelSettings(patch_size=4, embed_dim=WIDTH, layers=LAYERS)
STEM = (StemConvSettings(channels=6),)
ARCHITECTURES = {
    "class token": BASE,
    "sizes given once": ModelSettings(patch_size=4, embed_dim=WIDTH, depth=2, num_heads=2, mlp_dim=26),
    "mean pooling, sinusoidal": BASE.model_copy(update={"pool": "mean", "positions": "sinusoidal"}),
    "stem": BASE.model_copy(update={"patch_size": 1, "stem": STEM}),
    "distillation token": BASE.model_copy(update={"distillation": "token"}),
    "distillation head": BASE.model_copy(update={"distillation": "head"}),
    "shared blocks": BASE.model_copy(update={"order": (0, 1, 1, 0)}),
}
EVERY_ARCHITECTURE = pytest.mark.parametrize("settings", ARCHITECTURES.values(), ids=list(ARCHITECTURES))


def model_of(settings: ModelSettings) -> ViT:
    torch.manual_seed(0)
    model = ViT(settings, IMAGE, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)  # biases and norms too
    return model.eval()


def logits(model: ViT) -> torch.Tensor:
    pixels = torch.rand(16, IMAGE[2], *IMAGE[:2], generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        outputs: torch.Tensor = model(pixels)
    return outputs


EDITS: dict[str, Callable[[ViT], Group]] = {
    "head": lambda model: head_group(model, 0, [1]),
    "neurons": lambda model: neuron_group(model, 1, [3, 0, 16]),
    "columns": lambda model: column_group(model, [0, 7, 21]),
    "block": lambda model: block_group(model, 0),
}


@EVERY_ARCHITECTURE
def test_masked_is_physically_pruned(settings: ModelSettings) -> None:
    """A head that nothing reads (its columns of `attn.proj` are 0) is as good as gone, and so is a neuron."""
    model = model_of(settings)
    masked, before = copy.deepcopy(model), logits(model)
    head_dim = settings.resolved_layers()[0].head_dim
    with torch.no_grad():
        masked.blocks[0].attn.proj.weight[:, head_dim : 2 * head_dim] = 0.0
        masked.blocks[1].mlp.fc2.weight[:, [2, 11]] = 0.0
    remove(model, head_group(model, 0, [1]))
    remove(model, neuron_group(model, 1, [11, 2]))
    assert (logits(model) - logits(masked)).abs().max() <= 1e-6
    assert (logits(model) - before).abs().max() > 1e-2  # what is gone did something


@EVERY_ARCHITECTURE
def test_a_group_lists_every_tensor_that_changes(settings: ModelSettings) -> None:
    for edit in EDITS.values():
        model = model_of(settings)
        group = edit(model)
        before = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        expected = before | {cut.path: cut.shape_after for cut in group.cuts}
        assert all(before[cut.path] == cut.shape for cut in group.cuts)
        if group.block is not None:  # all of it goes, and the other one becomes block 0
            expected = {name: shape for name, shape in expected.items() if all(shape)}
            expected = {name.replace("blocks.1.", "blocks.0."): shape for name, shape in expected.items()}
        remove(model, group)
        assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected, group.name
        assert dict(model.named_buffers()).keys() == dict(model_of(settings).named_buffers()).keys()


@EVERY_ARCHITECTURE
def test_no_tensor_keeps_the_old_width(settings: ModelSettings) -> None:
    model = model_of(settings.model_copy(update={"layers": LAYERS}))  # whose heads together are not as wide
    assert any(WIDTH in tensor.shape for tensor in model.state_dict().values())
    remove(model, column_group(model, [4, 20, 5]))
    assert [name for name, tensor in model.state_dict().items() if WIDTH in tensor.shape] == []
    for module in model.modules():
        if isinstance(module, Linear):
            assert (module.out_features, module.in_features) == module.weight.shape
        elif isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == (WIDTH - 3,)


def test_the_columns_that_are_named_are_those_that_go() -> None:
    model = model_of(BASE)
    gone, kept = [1, 9], [i for i in range(WIDTH) if i not in (1, 9)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    remove(model, column_group(model, gone))
    for name, tensor in model.state_dict().items():
        old = before[name]
        for dim in range(old.ndim):
            if old.shape[dim] != tensor.shape[dim]:
                old = old.index_select(dim, torch.tensor(kept))
        assert torch.equal(tensor, old), name


@EVERY_ARCHITECTURE
def test_a_smaller_model_reloads_from_its_own_settings(settings: ModelSettings, tmp_path: Path) -> None:
    model = model_of(settings)
    for edit in EDITS.values():
        remove(model, edit(model))
    save_model(model, tmp_path)
    loaded = load_model(tmp_path).eval()
    assert loaded.settings == model.settings
    assert loaded.settings.preset is None
    assert torch.equal(logits(loaded), logits(model))


def test_without_a_preset_the_sizes_of_one_are_free(tmp_path: Path) -> None:
    model = ViT(ModelSettings(preset="vit-413k"), (32, 32, 3), 10)
    remove(model, column_group(model, [100]))
    save_model(model, tmp_path)
    assert load_model(tmp_path).settings.embed_dim == 127


def test_the_last_head_keeps_the_bias_of_the_projection() -> None:
    model = model_of(BASE)
    bias = model.linears()["blocks.0.attn.proj"].bias.clone()
    remove(model, head_group(model, 0, [2, 0]))
    assert model.blocks[0].attn.num_heads == 1
    assert torch.equal(model.linears()["blocks.0.attn.proj"].bias, bias)


def test_a_block_goes_at_every_depth_where_it_is_run() -> None:
    layers = (*LAYERS, LayerSettings(num_heads=1, head_dim=4, mlp_dim=5))
    model = model_of(BASE.model_copy(update={"layers": layers, "order": (2, 0, 1, 1, 2)}))
    others = [model.blocks[0], model.blocks[2]]
    remove(model, block_group(model, 1))
    assert list(model.blocks) == others
    assert model.settings.order == (1, 0, 1)
    assert model.settings.layers == (layers[0], layers[2])


def test_a_group_is_readable() -> None:
    assert str(head_group(model_of(ARCHITECTURES["sizes given once"]), 1, [0])) == (
        "head 0 of block 1\n"
        "  blocks.1.attn.qkv.weight   [66, 22] -> [33, 22]\n"
        "  blocks.1.attn.qkv.bias     [66] -> [33]\n"
        "  blocks.1.attn.proj.weight  [22, 22] -> [22, 11]\n"
        "  settings: layers[1].num_heads 2 -> 1"
    )
    lines = str(block_group(model_of(ARCHITECTURES["shared blocks"]), 0)).splitlines()
    assert lines[0] == "block 0"
    assert "  blocks.0.mlp.fc1.weight    [26, 22] -> gone" in lines
    assert lines[-2:] == ["  settings: order (0, 1, 1, 0) -> (0, 0)", "  settings: blocks 2 -> 1"]


def test_an_edit_of_another_state_of_the_model_is_not_made() -> None:
    model = model_of(BASE)
    first, second = head_group(model, 0, [0]), head_group(model, 0, [1])
    remove(model, first)
    with pytest.raises(AssertionError, match="another state"):
        remove(model, second)


def test_nothing_is_cut_under_a_mask() -> None:
    model = model_of(BASE)
    Pruning(PruneSettings()).attach(model, random_calibration(model))
    with pytest.raises(AssertionError):
        remove(model, neuron_group(model, 0, [0]))
