"""Low rank: ranks, the three decompositions against their definitions, what the pass makes of a model and its file."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput import artifact, pipeline
from lilliput.compress.factorize import (
    Factorization,
    activation_scaling,
    decompose,
    mean_over_inputs,
    rank_by_budget,
    rank_by_energy,
    whitening,
    worthwhile_rank,
)
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.prune import Pruning
from lilliput.compress.quantize import Quantization
from lilliput.config import FactorizeSettings, ModelSettings, PruneSettings, QuantizeSettings, parse_recipe
from lilliput.errors import FailureError, RecipeError
from lilliput.lower import lower
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.layers import Linear
from lilliput.models.low_rank import low_rank_layers
from lilliput.models.vit import ViT
from lilliput.program.cost import macs, parameter_counts
from lilliput.program.formats import stored_bytes
from lilliput.program.program import Program
from lilliput.train.calibration import random_calibration

SHAPE = (8, 8, 3)
SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64}


def small_model(**settings: Any) -> ViT:
    torch.manual_seed(0)
    model = ViT(ModelSettings.model_validate(SIZES | settings), SHAPE, 5)
    model.set_normalization(np.full(3, 120.0, np.float32), np.full(3, 60.0, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def factorized(model: ViT, **settings: Any) -> ViT:
    work = Factorization(FactorizeSettings.model_validate(settings))
    work.attach(model, random_calibration(model, examples=64))
    work.before_step(model, 0, 1)
    return model.eval()


def lowered(model: ViT) -> Program:
    Quantization(QuantizeSettings()).attach(model, random_calibration(model))
    return lower(model.eval(), {"labels": list("abcde"), "provenance": {}})


def weight_and_inputs(rows: int = 12, cols: int = 20, count: int = 300) -> tuple[Tensor, Tensor]:
    """A weight [N, K] and inputs [n, K] whose channels are correlated and of unlike sizes, float64."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, cols, generator=generator, dtype=torch.float64)
    mixing = torch.randn(cols, cols, generator=generator, dtype=torch.float64) * torch.logspace(-1, 1, cols)
    inputs = torch.randn(count, cols, generator=generator, dtype=torch.float64) @ mixing + 0.5
    return weight, inputs


def identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def product(weight: Tensor, scaling: Tensor, rank: int) -> Tensor:
    outer, inner = decompose(weight, scaling).factors(rank)
    assert outer.shape == (len(weight), rank) and inner.shape == (rank, weight.shape[1])
    return outer @ inner


def output_error(weight: Tensor, other: Tensor, inputs: Tensor) -> float:
    return float((inputs @ (weight - other).T).square().sum())


# Ranks ----------------------------------------------------------------------------------------------


def test_the_largest_rank_that_saves_numbers() -> None:
    for outputs in range(1, 40):
        for inputs in range(1, 40):
            fewer = [r for r in range(min(outputs, inputs) + 1) if r * (outputs + inputs) < outputs * inputs]
            assert worthwhile_rank(torch.Size([outputs, inputs])) == max(fewer)


def test_rank_by_energy_against_numpy() -> None:
    weight, _ = weight_and_inputs()
    squares = np.linalg.svd(weight.numpy(), compute_uv=False) ** 2
    found = decompose(weight, identity(20))
    for energy in (0.01, 0.3, 0.5, 0.9, 0.99, 0.999, 1.0):
        least = next(r for r in range(1, 13) if squares[:r].sum() >= energy * squares.sum() * (1 - 1e-12))
        assert rank_by_energy(found, energy) == least
    assert rank_by_energy(decompose(torch.zeros(12, 20), identity(20)), 0.9) == 1


def test_rank_by_budget_against_its_definition() -> None:
    for outputs, inputs in ((128, 128), (384, 128), (10, 128), (7, 300)):
        for budget in (0.01, 0.25, 0.5, 0.8, 0.99):
            rank = rank_by_budget(torch.Size([outputs, inputs]), budget)
            assert rank == max(1, int(np.floor(budget * outputs * inputs / (outputs + inputs))))
            assert rank == 1 or rank * (outputs + inputs) <= budget * outputs * inputs
            assert (rank + 1) * (outputs + inputs) > budget * outputs * inputs


# Decompositions -------------------------------------------------------------------------------------


def test_svd_is_the_nearest_weight_of_its_rank() -> None:
    weight, _ = weight_and_inputs()
    left, values, right = np.linalg.svd(weight.numpy(), full_matrices=False)
    for rank in (1, 5, 11):
        nearest: NDArray[np.float64] = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(product(weight, identity(20), rank).numpy(), nearest, atol=1e-12)


def test_whitened_loses_of_the_outputs_the_singular_values_that_it_leaves_out() -> None:
    """SVD-LLM's theorem: the error on the inputs is the sum of the squares; here around their mean, so n times it."""
    weight, x = weight_and_inputs()
    scaling = whitening(x.T @ x / len(x))
    values = decompose(weight, scaling).values
    for rank in range(1, 12):
        error = output_error(weight, product(weight, scaling, rank), x)
        assert error == pytest.approx(len(x) * float(values[rank:].square().sum()), rel=1e-8)


def test_on_correlated_inputs_whitened_beats_svd() -> None:
    weight, x = weight_and_inputs()
    for rank in (2, 5, 8):
        whitened = output_error(weight, product(weight, whitening(x.T @ x / len(x)), rank), x)
        assert whitened < 0.5 * output_error(weight, product(weight, identity(20), rank), x)


def test_whitened_does_not_need_more_examples_than_inputs() -> None:
    """Fewer than channels, and a channel that is always 0: the moments are singular."""
    weight, x = weight_and_inputs(count=9)
    x[:, 4] = 0.0
    moments = x.T @ x / len(x)
    scaling = whitening(moments)
    assert bool(torch.isfinite(scaling).all()) and bool((scaling.diagonal() > 0).all())
    torch.testing.assert_close(scaling @ scaling.T, moments, atol=1e-4 * float(moments.max()), rtol=0)
    rank = 6
    found = product(weight, scaling, rank)
    assert found.norm() <= weight.norm() * (1 + 1e-9), "a projection of the weight, so never larger"
    assert output_error(weight, found, x) < 0.5 * output_error(weight, product(weight, identity(20), rank), x)
    assert output_error(weight, product(weight, scaling, 9), x) < 1e-3 * float((x @ weight.T).square().sum())


def test_asvd_scales_inputs_by_their_mean_magnitude() -> None:
    weight, x = weight_and_inputs()
    for alpha in (0.0, 0.5, 1.0):
        sizes = np.abs(x.numpy()).mean(axis=0) ** alpha + 1e-6
        left, values, right = np.linalg.svd(weight.numpy() * sizes, full_matrices=False)
        expected = (left[:, :4] * values[:4]) @ right[:4] / sizes
        found = product(weight, activation_scaling(x.abs().mean(dim=0), alpha), 4)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
@pytest.mark.parametrize("method", ["svd", "whitened", "asvd"])
def test_the_full_rank_gives_the_weight_back(method: str, shape: tuple[int, int]) -> None:
    weight, x = weight_and_inputs(*shape)
    scaling = {
        "svd": identity(shape[1]),
        "whitened": whitening(x.T @ x / len(x)),
        "asvd": activation_scaling(x.abs().mean(dim=0), 0.5),
    }[method]
    torch.testing.assert_close(product(weight, scaling, min(shape)), weight, atol=1e-9, rtol=0)


def test_factors_have_equal_shares_of_the_singular_values_and_the_same_signs_every_time() -> None:
    weight, _ = weight_and_inputs()
    outer, inner = decompose(weight, identity(20)).factors(5)
    torch.testing.assert_close(outer.norm(dim=0), inner.norm(dim=1))
    torch.testing.assert_close(outer.norm(dim=0).square(), decompose(weight, identity(20)).values[:5])
    assert bool((outer.gather(0, outer.abs().argmax(dim=0, keepdim=True)) > 0).all())
    again = decompose(weight, identity(20)).factors(5)
    assert torch.equal(outer, again[0]) and torch.equal(inner, again[1])


# Inputs ---------------------------------------------------------------------------------------------


def test_moments_are_of_all_tokens_at_all_depths() -> None:
    model = small_model(order=(0, 1, 0))
    model.double()
    seen: list[Tensor] = []
    fc1 = model.linears()["blocks.0.mlp.fc1"]
    hook = fc1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    pixels = torch.rand(7, 3, 8, 8, dtype=torch.float64) * 255

    def run() -> None:
        for part in pixels.split(3):
            model(part)

    found = mean_over_inputs({"a": fc1, "head": model.linears()["head"]}, lambda x: x.T @ x, run)
    hook.remove()
    x = torch.cat([inputs.flatten(end_dim=-2) for inputs in seen])
    assert len(x) == 2 * 7 * 5
    torch.testing.assert_close(found["a"], x.T @ x / len(x))
    assert found["head"].shape == (32, 32) and found["head"].dtype == torch.float64
    assert not any(linear._forward_pre_hooks for linear in model.linears().values())


def test_inputs_are_those_of_the_model_before_it_is_factored() -> None:
    """So the last layer's factors do not depend on whether others are factored too."""
    alone = factorized(small_model(), layers=("blocks.1.mlp.fc1",), rank=4)
    together = factorized(small_model(), rank=4)
    for factor in ("inner", "outer"):
        name = f"blocks.1.mlp.fc1.{factor}"
        assert torch.equal(alone.linears()[name].weight, together.linears()[name].weight)


def test_a_diverged_model_is_named() -> None:
    model = small_model()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias[0] = float("inf")
    with pytest.raises(FailureError, match=r"^factorize: the inputs of blocks\.0\.mlp\.fc2 are not finite"):
        factorized(model, layers=("blocks.0.mlp",))


# The pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["svd", "whitened", "asvd"])
def test_each_method_is_applied_to_each_layer(method: str) -> None:
    model = small_model()
    dense = copy.deepcopy(model).linears()
    seen: dict[str, list[Tensor]] = {name: [] for name in dense}
    hooks = [
        linear.register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0]))
        for name, linear in model.linears().items()
    ]
    examples = random_calibration(model, examples=64)
    examples.forward(64)
    for hook in hooks:
        hook.remove()
    Factorization(FactorizeSettings.model_validate({"method": method, "rank": 6})).attach(model, examples)
    factored = low_rank_layers(model)
    assert set(factored) == {name for name in dense if name.startswith("blocks")}
    for name, layer in factored.items():
        x = torch.cat([inputs.flatten(end_dim=-2) for inputs in seen[name]]).double()
        scaling = {
            "svd": identity(x.shape[1]),
            "whitened": whitening(x.T @ x / len(x)),
            "asvd": activation_scaling(x.abs().mean(dim=0), 0.5),
        }[method]
        expected = product(dense[name].weight.detach().double(), scaling, 6).float()
        torch.testing.assert_close(layer.outer.weight @ layer.inner.weight, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(layer.outer.bias, dense[name].bias)
        assert not layer.inner.bias.any()


def test_by_default_each_weight_of_the_blocks_keeps_half_of_its_numbers() -> None:
    model = factorized(small_model())
    expected = {}
    for block in range(2):
        for name, (outputs, inputs) in {
            "attn.qkv": (96, 32),
            "attn.proj": (32, 32),
            "mlp.fc1": (64, 32),
            "mlp.fc2": (32, 64),
        }.items():
            expected[f"blocks.{block}.{name}"] = outputs * inputs // (2 * (outputs + inputs))
    assert model.settings.ranks == expected


def test_the_preset_can_be_factored() -> None:
    model = factorized(ViT(ModelSettings(preset="vit-413k"), (32, 32, 3), 10), method="svd", layers=("head",))
    assert model.settings.ranks == {"head": 4}
    assert ModelSettings.model_validate_json(model.settings.model_dump_json()) == model.settings


def test_layers_that_would_not_get_smaller_are_left_alone() -> None:
    """A rank of 18 saves numbers in a layer of 32 x 64 and of 96 x 32, in one of 32 x 32 it does not."""
    model = factorized(small_model(), rank=18)
    assert {name.partition(".")[2].partition(".")[2] for name in model.settings.ranks} == {
        "attn.qkv",
        "mlp.fc1",
        "mlp.fc2",
    }
    assert isinstance(model.blocks[0].attn.proj, Linear)


def test_energy_is_of_what_the_method_decomposes() -> None:
    model = small_model()
    dense = copy.deepcopy(model)
    factorized(model, energy=0.8)
    for name, rank in model.settings.ranks.items():
        linear = dense.linears()[name]
        moments = mean_over_inputs(
            {name: linear}, lambda x: x.T @ x, lambda: random_calibration(dense, examples=64).forward(64)
        )
        squares = decompose(linear.weight.detach(), whitening(moments[name])).values.square()
        assert squares[:rank].sum() >= 0.8 * squares.sum() > squares[: rank - 1].sum()
    assert len(model.settings.ranks) >= 4


def test_what_the_recipe_made_of_low_rank_stays() -> None:
    model = small_model(ranks={"blocks.0.mlp.fc1": 3, "head": 2})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    factorized(model, layers=("blocks.0.mlp",))
    assert model.settings.ranks == {"blocks.0.mlp.fc1": 3, "head": 2, "blocks.0.mlp.fc2": 10}
    for name in ("blocks.0.mlp.fc1.inner.weight", "blocks.0.mlp.fc1.outer.weight", "head.inner.weight"):
        assert torch.equal(model.state_dict()[name], before[name])


def test_applies_to_the_chosen_weights() -> None:
    work = Factorization(FactorizeSettings(layers=("blocks.1.attn", "head", "blocks.1.attn.qkv")))
    assert work.applies_to(small_model()) == ["blocks.1.attn.qkv.weight", "blocks.1.attn.proj.weight", "head.weight"]


def test_a_factored_model_reloads_from_its_settings(tmp_path: Path) -> None:
    model = factorized(small_model(), layers=("blocks", "patch_embed", "head"), budget=0.4)
    assert {"patch_embed.proj", "head"} <= model.settings.ranks.keys()
    save_model(model, tmp_path)
    again, pixels = load_model(tmp_path).eval(), torch.rand(3, 3, 8, 8) * 255
    assert again.settings == model.settings
    assert torch.equal(again(pixels), model(pixels))


# What it saves --------------------------------------------------------------------------------------


def test_multiply_adds_and_bytes_shrink_by_what_theory_says() -> None:
    """Of a layer of N x K at R rows: R r (N + K) in place of R N K, and as many codes. All sizes fill whole tiles."""
    settings = {"pool": "mean", "mlp_dim": 256}
    dense, factored = small_model(**settings), factorized(small_model(**settings), rank=16, layers=("blocks.0.mlp",))
    assert factored.settings.ranks == {"blocks.0.mlp.fc1": 16, "blocks.0.mlp.fc2": 16}
    programs = [lowered(model) for model in (dense, factored)]
    rows, saved = 4, 2 * (256 * 32 - 16 * (256 + 32))
    assert macs(programs[0]) - macs(programs[1]) == rows * saved
    assert parameter_counts(programs[0]).weights - parameter_counts(programs[1]).weights == saved
    codes = [
        sum(stored_bytes(t.format, t.layout, *t.values.shape) for t in program.tensors if t.role == "weight")
        for program in programs
    ]
    assert codes[0] - codes[1] == saved // 2  # two codes of pot4 a byte
    sizes = [len(artifact.to_bytes(program)) for program in programs]
    assert saved // 4 < sizes[0] - sizes[1] < saved // 2  # `inner` has scales, a bias and records of its own


# The claim ------------------------------------------------------------------------------------------


def test_the_claim_holds_in_later_stages_and_in_the_file() -> None:
    model = factorized(small_model(), rank=5, layers=("blocks.0",))
    claims = Factorization(FactorizeSettings(rank=5)).claims(model)
    assert claims[0].values == {"ranks": {f"blocks.0.{n}": 5 for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}}
    weights = 5 * (96 + 32 + 32 + 32 + 64 + 32 + 32 + 64)
    assert claims[0].detail == f"4 layers are of rank 5 to 5: {weights} weights in place of {8 * 32 * 32}"
    pruning = Pruning(PruneSettings(sparsity=0.5))
    pruning.attach(model, random_calibration(model))
    pruning.finish(model)
    claims += pruning.claims(model)
    assert_ledger(claims, model, "prune")
    program = lowered(model)
    assert_ledger(claims, model, "quantize")
    assert_ledger(claims, artifact.from_bytes(artifact.to_bytes(program), "low_rank.lil"), "export")


@pytest.mark.parametrize(("rank", "layers"), [(4, ("blocks.0",)), (5, ("blocks",)), (5, ("blocks.0.mlp",))])
def test_other_ranks_than_claimed_are_refused(rank: int, layers: tuple[str, ...]) -> None:
    claims = Factorization(FactorizeSettings(rank=5)).claims(factorized(small_model(), rank=5, layers=("blocks.0",)))
    broken = factorized(small_model(), rank=rank, layers=layers)
    for subject in (broken, lowered(copy.deepcopy(broken)), small_model()):
        with pytest.raises(FailureError, match=r"^after 'prune' the guarantee of 'factorize' is broken: 4 layers"):
            assert_ledger(claims, subject, "prune")


# Refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layers": ("block",)},
            r"^factorize\.layers: 'block' is no layer; the layers are patch_embed\.proj, blocks\.0",
        ),
        ({"rank": 24}, r"^factorize\.rank=24: no layer would get smaller; at most 23 helps \(blocks\.0\.attn\.qkv\)$"),
        (
            {"rank": 22, "layers": ("blocks.1.mlp",)},
            r"^factorize\.rank=22: no layer would get smaller; at most 21 helps \(blocks\.1\.mlp\.fc1\)$",
        ),
        ({"energy": 1.0}, r"^factorize\.energy=1\.0: no layer would get smaller; at most 0\.9\d* helps \(blocks"),
    ],
)
def test_what_cannot_save_anything_is_refused_with_what_can(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        factorized(small_model(), **settings)


def test_what_the_refusals_name_does_help() -> None:
    assert factorized(small_model(), rank=23).settings.ranks == {f"blocks.{i}.attn.qkv": 23 for i in range(2)}
    with pytest.raises(RecipeError) as refused:
        factorized(small_model(), energy=1.0)
    energy = float(str(refused.value).split("at most ")[1].split(" ")[0])
    assert len(factorized(small_model(), energy=energy).settings.ranks) >= 1
    with pytest.raises(RecipeError):
        factorized(small_model(), energy=energy + 0.001)


def test_too_small_layers_are_refused_whatever_the_rank() -> None:
    model = ViT(ModelSettings.model_validate(SIZES), SHAPE, 1)
    for settings in ({}, {"rank": 1}, {"budget": 0.9}):
        with pytest.raises(RecipeError, match=r"^factorize\.layers=\['head'\]: no layer would get smaller at any rank"):
            factorized(model, layers=("head",), **settings)


def test_energy_is_not_refused_by_an_untrained_models_weights() -> None:
    """`attach` alone is what happens before training, on weights that keep nothing in few directions."""
    model = small_model()
    work = Factorization(FactorizeSettings(energy=0.9999))
    work.attach(model, random_calibration(model))
    assert model.settings.ranks == {}
    with pytest.raises(RecipeError, match=r"^factorize\.energy=0\.9999: no layer would get smaller"):
        work.before_step(model, 0, 10)


# A run ----------------------------------------------------------------------------------------------


def test_a_run_shares_factors_prunes_and_measures_the_file(tmp_path: Path) -> None:
    recipe = {
        "name": "small",
        "stages": ["train", "share", "factorize", "prune", "quantize", "export", "evaluate"],
        "data": {"name": "digits"},
        "model": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48},
        "train": {"epochs": 5, "batch_size": 32, "lr": 5e-3},
        "share": {"epochs": 3, "batch_size": 32, "lr": 5e-3, "num_blocks": 1},
        "factorize": {"epochs": 1, "batch_size": 32, "lr": 2e-3, "budget": 0.7},
        "prune": {"epochs": 1, "batch_size": 32, "lr": 2e-3, "sparsity": 0.3, "update_every": 5},
        "quantize": {"epochs": 1, "batch_size": 32, "lr": 1e-3},
    }
    folder = pipeline.run(parse_recipe(recipe, "test"), tmp_path, quiet=True)
    program = artifact.read(folder / "model.lil")
    names = {tensor.name for tensor in program.tensors}
    assert "blocks.0.attn.qkv.inner.weight" in names and not any(name.startswith("blocks.1") for name in names)
    assert [op.kind for op in program.ops].count("table_attention") == 2
    records = [json.loads(path.read_text())["record"] for path in folder.glob("*/record.json")]
    by_stage = {record["stage"]: record for record in records}
    assert {row["claim"] for row in by_stage["export"]["ledger"]} >= {"shared", "ranks", "sparsity"}
    evaluated = by_stage["evaluate"]
    assert evaluated["accuracy"] > 0.7
    assert evaluated["differing_predictions"] <= 1 and evaluated["max_logit_difference"] <= 0.1
