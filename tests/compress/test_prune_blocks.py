"""Pruning of whole blocks: which go, that they are zero where the program has them, and what the file makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lilliput import artifact
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.prune import Pruning, apply_masks, block_masks, block_sums, count_zero_blocks
from lilliput.compress.quantize import Quantization
from lilliput.config import ModelSettings, PruneSettings, QuantizeSettings, StemConvSettings
from lilliput.errors import FailureError
from lilliput.lower import lower
from lilliput.models.stack import Mask, base_of, layer_of
from lilliput.models.vit import ViT
from lilliput.program.cost import macs
from lilliput.program.formats import count_blocks
from lilliput.program.program import Program
from lilliput.train.calibration import random_calibration

BLOCK = (16, 8)


def in_order(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Columns as they are."""
    return {name: torch.arange(weight.shape[1]) for name, weight in weights.items()}


def guarded(layer_floor: float) -> PruneSettings:
    return PruneSettings(block=BLOCK, layer_floor=layer_floor)


def model_with_stem() -> ViT:
    torch.manual_seed(0)
    stem = (StemConvSettings(channels=20),)
    settings = ModelSettings(patch_size=2, embed_dim=32, depth=2, num_heads=2, mlp_dim=48, stem=stem)
    return ViT(settings, (16, 16, 3), 5)


def pruned(sparsity: float, block: tuple[int, int] = BLOCK) -> tuple[ViT, Pruning]:
    model = model_with_stem()
    work = Pruning(PruneSettings(sparsity=sparsity, block=block))
    work.attach(model, random_calibration(model))
    work.finish(model)
    return model, work


def program_of(model: ViT, weight_format: str = "pot4") -> Program:
    Quantization(QuantizeSettings.model_validate({"weight_format": weight_format, "hidden": "dynamic"})).attach(
        model, random_calibration(model)
    )
    return lower(model, {"labels": list("abcde")})


def test_sums_of_blocks_by_hand() -> None:
    values = torch.arange(1.0, 13.0).reshape(3, 4)
    assert block_sums(values, (2, 3)).tolist() == [[1 + 2 + 3 + 5 + 6 + 7, 4 + 8], [9 + 10 + 11, 12]]


def test_the_blocks_of_least_norm_go_over_all_layers() -> None:
    """Norms 1 to 6, two of them in a second layer: the half that goes are 1, 2 and 3, also relative to the layers'."""
    a = torch.tensor([[1.0, 5.0], [6.0, 2.0]]).repeat_interleave(16, 0).repeat_interleave(8, 1)
    b = torch.tensor([[4.0, 3.0]]).repeat_interleave(16, 0).repeat_interleave(8, 1)
    weights = {"a": a, "b": b}
    masks = block_masks(weights, 0.5, guarded(0.0), in_order(weights))
    assert masks["a"][::16, ::8].tolist() == [[0, 1], [1, 0]]
    assert masks["b"][::16, ::8].tolist() == [[1, 0]]
    for name, weight in weights.items():
        sums = block_sums(masks[name], BLOCK)
        assert set(sums.flatten().tolist()) <= {0.0, 128.0}, "whole blocks"
        assert masks[name].shape == weight.shape


def test_a_layer_of_small_weights_keeps_as_many_blocks() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(160, 80), torch.randn(160, 80)
    weights = {"a": a * torch.rand(10, 10).repeat_interleave(16, 0).repeat_interleave(8, 1), "b": b * 0.01}
    scaled = {"a": weights["a"], "b": b}
    masks, others = (block_masks(each, 0.5, guarded(0.0), in_order(each)) for each in (weights, scaled))
    assert all(bool((masks[name] == others[name]).all()) for name in weights)
    zeros, blocks = count_zero_blocks([masks["b"]], BLOCK)
    assert 0 < zeros < blocks


def test_a_layer_that_is_all_zero_loses_its_blocks_first() -> None:
    weights = {"none": torch.zeros(32, 16), "some": torch.randn(32, 16)}
    masks = block_masks(weights, 0.375, guarded(0.0), in_order(weights))
    assert count_zero_blocks([masks["none"]], BLOCK) == (3, 4)
    assert count_zero_blocks([masks["some"]], BLOCK) == (0, 4)


def test_a_block_at_the_edge_is_judged_by_its_weights_not_by_its_size() -> None:
    weight = torch.ones(17, 8)
    weight[16] = 1.1  # the second block has 8 weights of 1.1, the first 128 of 1
    masks = block_masks({"a": weight}, 0.5, guarded(0.0), in_order({"a": weight}))
    assert masks["a"][16].min() == 1 and masks["a"][:16].max() == 0


def test_the_number_of_blocks_is_exact_even_with_ties() -> None:
    weights = {"a": torch.ones(64, 64), "b": torch.randn(40, 20)}  # 32 + 9 blocks
    for sparsity in (0.1, 0.5, 0.75, 0.9):
        masks = block_masks(weights, sparsity, guarded(0.0), in_order(weights))
        assert count_zero_blocks(masks.values(), BLOCK) == (round(sparsity * 41), 41)


def test_every_layer_keeps_its_floor_and_at_least_one_block() -> None:
    lopsided = torch.full((32, 80), 1e-9)
    lopsided[:16, :8] = 1.0  # next to this one the other 19 blocks are nothing
    weights = {"lopsided": lopsided, "one": torch.full((16, 8), 1e-12), "large": torch.randn(160, 80)}
    masks = block_masks(weights, 0.8, guarded(0.1), in_order(weights))
    assert count_zero_blocks([masks["lopsided"]], BLOCK) == (18, 20)
    assert count_zero_blocks([masks["one"]], BLOCK) == (0, 1)


@pytest.mark.parametrize("weight_format", ["int8", "int6", "int4", "pot4"])
def test_blocks_are_zero_in_the_order_of_the_program_and_left_out_of_the_file(weight_format: str) -> None:
    """Convolutions and patches have their columns in another order there."""
    block = (16, 16) if weight_format == "int6" else BLOCK
    model, work = pruned(0.75, block)
    dense = program_of(model_with_stem(), weight_format)
    program = program_of(model, weight_format)
    weights = {tensor.name: tensor for tensor in program.tensors if tensor.role == "weight"}
    stored = sum(count_blocks(tensor.values, tensor.format) for tensor in weights.values())
    _, blocks = count_zero_blocks([torch.from_numpy(tensor.values) for tensor in weights.values()], block)
    assert stored <= blocks - round(0.75 * blocks)
    assert any(tensor.layout == "blocks" for name, tensor in weights.items() if name.startswith("patch_embed"))
    data = artifact.to_bytes(program)
    assert len(data) < len(artifact.to_bytes(dense))
    assert macs(program) < macs(dense)
    decoded = artifact.from_bytes(data, "blocks.lil")
    assert [record["holds"] for record in assert_ledger(work.claims(model), decoded, "export")] == [True, True]


def test_masks_hold_through_training() -> None:
    model, work = pruned(0.5)
    gone = {name: linear.weight == 0 for name, linear in model.linears().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 16, 16) * 255), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        apply_masks(model)
    assert all(bool((linear.weight[gone[name]] == 0).all()) for name, linear in model.linears().items())
    assert_ledger(work.claims(model), model, "finetune")


def test_ledger_notices_a_block_that_came_back() -> None:
    model, work = pruned(0.5)
    claims = work.claims(model)
    assert [claim.kind for claim in claims] == ["sparsity", "zero blocks"]
    assert "blocks of 16 outputs x 8 inputs are zero" in claims[1].detail
    mask = layer_of(model.head, "weight", Mask)
    assert mask is not None
    with torch.no_grad():
        base_of(model.head, "weight").fill_(1.0)
        mask.mask.fill_(1.0)
    with pytest.raises(FailureError, match=r"guarantee of 'prune' is broken: at least \d+ of \d+ blocks of 16 outputs"):
        assert_ledger(claims[1:], model, "quantize")


def test_ledger_notices_a_block_that_came_back_in_the_file() -> None:
    model, work = pruned(0.5)
    program = program_of(model)
    claims = work.claims(model)[1:]
    assert_ledger(claims, program, "export")
    tensors = tuple(
        replace(tensor, values=np.where(tensor.values == 0, 1, tensor.values).astype(np.int8))
        if tensor.role == "weight" and tensor.layout == "blocks"
        else tensor
        for tensor in program.tensors
    )
    with pytest.raises(FailureError, match="blocks of 16 outputs x 8 inputs are zero"):
        assert_ledger(claims, replace(program, tensors=tensors), "export")
