"""Masks and rounding against torch's own: which weights, groups and blocks `torch.nn.utils.prune` and
`torch.ao.pruning` would remove, and what `torch.fake_quantize_per_channel_affine` makes of weights and gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.ao.pruning.sparsifier.weight_norm_sparsifier import WeightNormSparsifier
from torch.nn.utils import prune

from lilliput.compress.prune import block_masks, block_sums, pattern_masks, weight_masks
from lilliput.config import PruneSettings
from lilliput.models.stack import WeightQuantizer

SHAPES = {"qkv": (96, 32), "proj": (32, 32), "fc1": (128, 32), "fc2": (32, 128)}


def layers() -> dict[str, nn.Linear]:
    """Without ties, and of unlike sizes, so that a global threshold takes other shares of each."""
    torch.manual_seed(0)
    made = {name: nn.Linear(cols, rows) for name, (rows, cols) in SHAPES.items()}
    for layer, size in zip(made.values(), (1.0, 0.5, 2.0, 1.0), strict=True):
        nn.init.normal_(layer.weight, std=size)
    return made


def weights_of(model: dict[str, nn.Linear]) -> dict[str, Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in model.items()}


def in_order(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.arange(weight.shape[1]) for name, weight in weights.items()}


def masks_of(model: dict[str, nn.Linear]) -> dict[str, Tensor]:
    return {name: dict(layer.named_buffers())["weight_mask"] for name, layer in model.items()}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, mask in ours.items():
        assert torch.equal(mask, theirs[name].to(mask.dtype)), name


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.6, 0.9])
def test_one_threshold_for_all_layers_is_torchs_global_pruning(sparsity: float) -> None:
    model = layers()
    scores = {name: weight.abs() for name, weight in weights_of(model).items()}
    found = weight_masks(scores, sparsity, PruneSettings(layer_floor=0.0))
    pairs = [(layer, "weight") for layer in model.values()]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=sparsity)
    assert_equal(found, masks_of(model))
    assert float(found["proj"].mean()) < 0.9 * float(found["fc1"].mean())  # whose weights are four times as large


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.6, 0.9])
def test_a_share_of_each_layer_is_torchs_pruning_layer_by_layer(sparsity: float) -> None:
    model = layers()
    scores = {name: weight.abs() for name, weight in weights_of(model).items()}
    found = weight_masks(scores, sparsity, PruneSettings(scope="layer"))
    for layer in model.values():
        prune.l1_unstructured(layer, "weight", amount=sparsity)
    assert_equal(found, masks_of(model))


def sparsified(
    model: dict[str, nn.Linear], share: float, block: tuple[int, int], zeros: int, norm: int
) -> dict[str, Tensor]:
    """Masks of torch's sparsifier: `zeros` in each of a share of a layer's blocks, those of least norm."""
    sparsifier = WeightNormSparsifier(share, block, zeros, norm)
    sparsifier.prepare(nn.ModuleDict(model), [{"tensor_fqn": f"{name}.weight"} for name in model])
    sparsifier.step()
    return {name: dict(layer.named_buffers())["parametrizations.weight.0.mask"] for name, layer in model.items()}


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8), (3, 8)])
def test_n_of_m_is_torchs_semi_structured_sparsity(pattern: tuple[int, int]) -> None:
    model, (keep, size) = layers(), pattern
    weights = weights_of(model)
    found = pattern_masks(weights, 1.0, PruneSettings(pattern=pattern), in_order(weights))
    assert_equal(found, sparsified(model, 1.0, (1, size), size - keep, norm=1))


@pytest.mark.parametrize("block", [(16, 8), (16, 16)])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_blocks_of_least_norm_are_torchs(block: tuple[int, int], share: float) -> None:
    model = layers()
    weights = weights_of(model)
    found = block_masks(weights, share, PruneSettings(block=block, scope="layer"), in_order(weights))
    for name, weight in weights.items():
        rows = weight.unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0])).transpose(1, 2)
        blocks = nn.Linear(block[0] * block[1], rows.shape[0] * rows.shape[1])  # each block is a row
        blocks.weight = nn.Parameter(rows.reshape(blocks.weight.shape))
        prune.ln_structured(blocks, "weight", amount=share, n=2, dim=0)
        kept = block_sums(found[name], block).flatten() / (block[0] * block[1])
        assert torch.equal(kept, blocks.weight_mask[:, 0])
        assert float(kept.mean()) == 1.0 - share
    assert_equal(found, sparsified(model, share, block, block[0] * block[1], norm=2))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", ["int8", "int6", "int4"])
def test_integer_weights_are_torchs_symmetric_channels(name: str, learned: bool) -> None:
    """Values, and gradients that are straight-through inside the clip range only. (Torch's range goes on to where
    levels are rounded to one beyond, half a step further than LSQ's; the gradients there are left out.)"""
    torch.manual_seed(0)
    quantizer = WeightQuantizer(name, 12, learned)
    weight, upstream = torch.randn(12, 50), torch.randn(12, 50)
    top = int(quantizer.max_level)
    with torch.no_grad():
        quantizer.scale.copy_((weight.abs().amax(1, keepdim=True) / top * 0.7).to(torch.bfloat16))  # some are cut
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    found = quantizer(ours)
    scale, zero = quantizer.row_scale().detach().flatten(), torch.zeros(12, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero, 0, -top, top)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.autograd.backward([found, expected], [upstream, upstream])
    assert ours.grad is not None and theirs.grad is not None
    steps = (weight / scale[:, None]).abs()
    between = (steps > top) & (steps <= top + 0.5)
    torch.testing.assert_close(ours.grad.masked_fill(between, 0.0), theirs.grad.masked_fill(between, 0.0))
    cut = steps > top
    assert 0.01 < float(cut.float().mean()) < 0.5 and not bool(ours.grad[cut].any())
