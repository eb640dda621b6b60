"""Sharing of blocks: which become one, how they start, what is shared in the model, in its gradient and in the file."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lilliput import artifact
from lilliput.compress.factorize import Factorization
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.quantize import Quantization
from lilliput.compress.share import Sharing
from lilliput.config import FactorizeSettings, LayerSettings, ModelSettings, QuantizeSettings, ShareSettings
from lilliput.data import Part
from lilliput.errors import FailureError, RecipeError
from lilliput.lower import lower
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.vit import ViT
from lilliput.program import reference
from lilliput.program.cost import macs, parameter_counts
from lilliput.program.program import Program
from lilliput.train.calibration import Calibration, calibration, random_calibration

SHAPE = (8, 8, 3)
SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 24, "num_heads": 3, "mlp_dim": 40}


def model_of(depth: int, **settings: Any) -> ViT:
    torch.manual_seed(0)
    model = ViT(ModelSettings.model_validate(SIZES | {"depth": depth} | settings), SHAPE, 5)
    model.set_normalization(np.full(3, 120.0, np.float32), np.full(3, 60.0, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def shared(model: ViT, num_blocks: int, examples: Calibration | None = None) -> ViT:
    Sharing(ShareSettings(num_blocks=num_blocks)).attach(model, examples or random_calibration(model))
    return model.eval()


def quantized(model: ViT, hidden: str = "static") -> ViT:
    Quantization(QuantizeSettings.model_validate({"hidden": hidden})).attach(model, random_calibration(model))
    return model.eval()


def lowered(model: ViT) -> Program:
    return lower(model, {"labels": list("abcde"), "provenance": {}})


# Which become one -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "num_blocks", "order"),
    [
        (4, 1, (0, 0, 0, 0)),
        (4, 2, (0, 0, 1, 1)),
        (3, 2, (0, 0, 1)),
        (5, 3, (0, 0, 1, 1, 2)),
        (7, 3, (0, 0, 0, 1, 1, 2, 2)),
    ],
)
def test_consecutive_depths_share_as_evenly_as_can_be(depth: int, num_blocks: int, order: tuple[int, ...]) -> None:
    model = shared(model_of(depth), num_blocks)
    assert model.settings.resolved_order() == order
    assert len(model.blocks) == len(model.settings.resolved_layers()) == num_blocks


def test_a_model_that_shares_already_can_share_more() -> None:
    model = shared(model_of(2, order=(0, 1, 0, 1)), 1)
    assert model.settings.resolved_order() == (0, 0, 0, 0)
    assert model(torch.rand(2, 3, 8, 8) * 255).shape == (2, 5)


def test_the_preset_can_share() -> None:
    model = ViT(ModelSettings(preset="vit-413k"), (32, 32, 3), 10)
    blocks = sum(p.numel() for p in model.blocks[0].parameters())
    Sharing(ShareSettings()).attach(model, random_calibration(model, examples=2))
    assert model.num_parameters() == 413_706 - 2 * blocks
    assert ModelSettings.model_validate_json(model.settings.model_dump_json()) == model.settings


# How they start -------------------------------------------------------------------------------------


def planted(mean_is_right: bool) -> tuple[ViT, dict[str, torch.Tensor], Calibration]:
    """A model of two blocks, the tensors of the one block that does what its labels ask for, and examples whose labels
    are that model's: the two blocks lie around it, or the first is it."""
    model = model_of(1, order=(0, 0))
    with torch.no_grad():
        model.head.weight.mul_(20.0)  # logits that differ, so that the loss does
    right = copy.deepcopy(model.blocks[0].state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)
    with torch.no_grad():
        labels = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float()).argmax(1).numpy()
    two = model_of(2)
    noise = {name: torch.randn_like(tensor) * 0.3 for name, tensor in right.items()}
    first = {n: t + noise[n] if mean_is_right else t for n, t in right.items()}
    second = {n: t - noise[n] if mean_is_right else t + noise[n] for n, t in right.items()}
    others = {n: t for n, t in model.state_dict().items() if not n.startswith("blocks.")}
    two.load_state_dict(
        others | {f"blocks.{i}.{n}": t for i, block in enumerate((first, second)) for n, t in block.items()}
    )
    return two, right, calibration(two, Part(pixels, labels))


@pytest.mark.parametrize("mean_is_right", [True, False])
def test_it_starts_as_the_mean_or_the_first_whichever_has_the_lower_loss(mean_is_right: bool) -> None:
    model, right, examples = planted(mean_is_right)
    shared(model, 1, examples)
    for name, tensor in model.blocks[0].state_dict().items():
        torch.testing.assert_close(tensor, right[name], atol=1e-6, rtol=0)


def test_the_same_model_and_examples_give_the_same_start() -> None:
    tensors = [shared(model_of(4), 2).state_dict() for _ in range(2)]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


# What is shared -------------------------------------------------------------------------------------


def test_parameters_are_there_once_by_their_storage() -> None:
    model = model_of(4)
    before, block = model.num_parameters(), sum(p.numel() for p in model.blocks[0].parameters())
    shared(model, 2)
    used: list[nn.Module] = []
    hooks = [b.register_forward_pre_hook(lambda module, inputs: used.append(module)) for b in model.blocks]
    model(torch.rand(2, 3, 8, 8) * 255)
    for hook in hooks:
        hook.remove()
    assert len(used) == 4, "as deep as before"
    storages = {p.data_ptr() for module in used for p in module.parameters()}
    assert len(storages) == 2 * len(list(model.blocks[0].parameters()))
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert model.num_parameters() == before - 2 * block


def test_the_gradient_of_a_shared_block_is_the_sum_over_its_depths() -> None:
    model = shared(model_of(5), 2)
    order = model.settings.resolved_order()
    twin = model_of(5)
    others = {n: t for n, t in model.state_dict().items() if not n.startswith("blocks.")}
    copies = {f"blocks.{d}.{n}": t for d, i in enumerate(order) for n, t in model.blocks[i].state_dict().items()}
    twin.load_state_dict(others | copies)
    pixels, labels = torch.rand(6, 3, 8, 8) * 255, torch.arange(6) % 5
    for one in (model, twin):
        torch.autograd.backward(F.cross_entropy(one(pixels), labels))
    for index, block in enumerate(model.blocks):
        for name, parameter in block.named_parameters():
            parts = [twin.blocks[d].get_parameter(name) for d, i in enumerate(order) if i == index]
            found = [part.grad for part in parts if part.grad is not None]
            assert len(found) == order.count(index)
            torch.testing.assert_close(parameter.grad, torch.stack(found).sum(dim=0), atol=1e-6, rtol=1e-4)


def test_the_file_is_smaller_and_the_arithmetic_is_not() -> None:
    """ALBERT saves parameters, not multiply-adds."""
    whole, less = lowered(quantized(model_of(4))), lowered(quantized(shared(model_of(4), 2)))
    assert macs(less) == macs(whole)
    block = sum(p.numel() for p in model_of(4).blocks[0].parameters())
    assert parameter_counts(whole).parameters - parameter_counts(less).parameters == 2 * block
    names = {tensor.name for tensor in less.tensors}
    assert not any(name.startswith(("blocks.2", "blocks.3")) for name in names)
    sizes = [len(artifact.to_bytes(program)) for program in (whole, less)]
    assert sizes[0] - sizes[1] > 2 * block // 2  # at 4 bits a weight


@pytest.mark.parametrize("hidden", ["static", "dynamic"])
@pytest.mark.parametrize("factored", [False, True])
def test_the_program_equals_the_simulated_model(hidden: str, factored: bool) -> None:
    """Bounds as in test_lower.py and, for constant scales, test_hidden.py."""
    model = shared(model_of(4), 2)
    if factored:
        Factorization(FactorizeSettings(layers=("blocks", "patch_embed"))).attach(model, random_calibration(model))
    quantized(model, hidden)
    images = np.random.default_rng(0).integers(0, 256, (48, *SHAPE), dtype=np.uint8)
    with torch.no_grad():
        simulated = model(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
    difference = np.abs(simulated - reference.run(lowered(model), images.reshape(48, -1, 3)))
    assert np.median(difference) <= (1e-4 if hidden == "static" else 2e-5) * simulated.std()
    assert difference.max() <= (0.08 if hidden == "static" else 0.05) * simulated.std()
    assert simulated.std(axis=0).mean() > 0.01


def test_a_shared_model_reloads_from_its_settings(tmp_path: Path) -> None:
    model = shared(model_of(4), 2)
    save_model(model, tmp_path)
    again, pixels = load_model(tmp_path).eval(), torch.rand(3, 3, 8, 8) * 255
    assert again.settings == model.settings
    assert torch.equal(again(pixels), model(pixels))


# The claim ------------------------------------------------------------------------------------------


def test_the_claim_holds_in_later_stages_and_in_the_file() -> None:
    model = shared(model_of(4), 2)
    (claim,) = claims = Sharing(ShareSettings(num_blocks=2)).claims(model)
    assert claim.detail == "distinct blocks: 2 for 4 depths, each stored once"
    assert_ledger(claims, model, "share")
    Factorization(FactorizeSettings()).attach(model, random_calibration(model))
    assert_ledger(claims, model, "factorize")
    quantized(model)
    assert_ledger(claims, model, "quantize")
    assert_ledger(claims, artifact.from_bytes(artifact.to_bytes(lowered(model)), "shared.lil"), "export")


def test_a_model_or_file_that_shares_no_longer_is_refused() -> None:
    claims = Sharing(ShareSettings(num_blocks=2)).claims(shared(model_of(4), 2))
    for broken in (model_of(4), shared(model_of(3), 2), shared(model_of(4), 1)):
        for subject in (broken, lowered(quantized(copy.deepcopy(broken)))):
            with pytest.raises(FailureError, match=r"^after 'prune' the guarantee of 'share' is broken: distinct"):
                assert_ledger(claims, subject, "prune")


# Refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "num_blocks", "message"),
    [
        (3, 4, r"^share\.num_blocks=4 must be below 3, the number of blocks that there are$"),
        (3, 3, r"^share\.num_blocks=3 must be below 3"),
        (1, 1, r"^share: the model has one block, so none can be shared; drop the stage$"),
    ],
)
def test_too_many_blocks_are_refused(depth: int, num_blocks: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        shared(model_of(depth), num_blocks)


def test_blocks_of_other_sizes_are_refused_with_what_is_possible() -> None:
    wide, thin = (LayerSettings(num_heads=n, head_dim=4, mlp_dim=16) for n in (3, 2))
    message = (
        r"^share\.num_blocks=1: blocks 0 and 2 would become one, but have other sizes \(num_heads=3 head_dim=4 "
        r"mlp_dim=16; num_heads=2 head_dim=4 mlp_dim=16\); possible: \[2, 3\]$"
    )
    with pytest.raises(RecipeError, match=message):
        shared(model_of(1, layers=(wide, wide, thin, thin)), 1)
    shared(model_of(1, layers=(wide, wide, thin, thin)), 2)
    with pytest.raises(RecipeError, match=r"give all blocks the same sizes$"):
        shared(model_of(1, layers=(wide, thin)), 1)


def test_ranks_are_sizes_too() -> None:
    ranks = {"blocks.0.mlp.fc1": 4, "blocks.1.mlp.fc1": 4, "blocks.2.mlp.fc1": 5, "head": 2}
    model = model_of(4, ranks=ranks)
    with pytest.raises(
        RecipeError, match=r"blocks 2 and 3 would become one.*ranks=\{'mlp\.fc1': 5\}; .*possible: \[3\]$"
    ):
        shared(model, 2)
    assert shared(model_of(4, ranks=ranks), 3).settings.ranks == {
        "blocks.0.mlp.fc1": 4,
        "blocks.1.mlp.fc1": 5,
        "head": 2,
    }
