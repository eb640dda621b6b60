"""Layers of low rank: what they compute, wherever they stand in a ViT, on the disk and in a program; bad ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lilliput import artifact
from lilliput.compress.hidden import hidden_readers
from lilliput.compress.quantize import Quantization
from lilliput.config import ModelSettings, QuantizeSettings, StemConvSettings
from lilliput.errors import RecipeError
from lilliput.lower import lower
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.layers import Linear
from lilliput.models.low_rank import LowRankLinear, low_rank_layers
from lilliput.models.vit import ViT
from lilliput.program import reference
from lilliput.program.program import Program
from lilliput.train.calibration import random_calibration

SIZES: dict[str, Any] = {"embed_dim": 24, "num_heads": 3, "mlp_dim": 40}
STEM = (StemConvSettings(channels=6), StemConvSettings(channels=10, stride=1))
ARCHITECTURES = {
    "class token": (ModelSettings(patch_size=2, depth=2, **SIZES), (8, 8, 1)),
    "stem": (ModelSettings(patch_size=2, depth=1, pool="mean", stem=STEM, **SIZES), (8, 12, 3)),
    "distillation head": (ModelSettings(patch_size=4, depth=1, distillation="head", **SIZES), (8, 12, 3)),
    "shared": (ModelSettings(patch_size=4, depth=2, order=(0, 1, 0), **SIZES), (8, 8, 3)),
}
PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "proj", "head")


def low_rank_model(name: str, parts: tuple[str, ...] = PARTS) -> ViT:
    """Every layer whose name ends in one of `parts` has half of its rank."""
    torch.manual_seed(0)
    settings, shape = ARCHITECTURES[name]
    dense = ViT(settings, shape, 5).linears()
    ranks = {n: min(x.weight.shape) // 2 for n, x in dense.items() if n.endswith(parts)}
    model = ViT(settings.model_copy(update={"ranks": ranks}), shape, 5)
    model.set_normalization(np.full(shape[2], 120.0, np.float32), np.full(shape[2], 60.0, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def quantized(model: ViT, hidden: str) -> ViT:
    Quantization(QuantizeSettings.model_validate({"hidden": hidden})).attach(model, random_calibration(model))
    return model.eval()


def outputs_of_both(model: ViT) -> tuple[np.ndarray, np.ndarray, Program]:
    """Logits of 48 images: of the model and of its program."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, *model.image_shape), dtype=np.uint8)
    program = lower(model, {"labels": list("abcde"), "provenance": {}})
    with torch.no_grad():
        simulated = model(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
    return simulated, reference.run(program, images.reshape(48, -1, model.image_shape[2])), program


def test_a_layer_is_the_product_of_its_factors() -> None:
    torch.manual_seed(0)
    layer, x = LowRankLinear(7, 9, 3), torch.randn(4, 5, 7)
    assert torch.equal(layer.weight, layer.outer.weight @ layer.inner.weight)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert layer.inner.weight.shape == (3, 7) and layer.outer.weight.shape == (9, 3)
    assert not layer.inner.bias.any()
    assert layer.outer.bias.any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ranks_of_the_settings_replace_these_layers_and_no_others(name: str) -> None:
    settings, shape = ARCHITECTURES[name]
    dense = ViT(settings, shape, 5).linears()
    model = low_rank_model(name)
    ranks = model.settings.ranks
    assert ranks.keys() == dense.keys()  # PARTS are all
    assert {n: layer.rank for n, layer in low_rank_layers(model).items()} == ranks
    assert set(model.linears()) == {f"{n}.{factor}" for n in dense for factor in ("inner", "outer")}
    partly = low_rank_model(name, ("fc1",))
    chosen = [n for n in dense if n.endswith("fc1")]
    assert set(low_rank_layers(partly)) == set(chosen)
    assert set(partly.linears()) - set(dense) == {f"{n}.{f}" for n in chosen for f in ("inner", "outer")}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_factors_of_the_full_weights_give_the_dense_models_outputs(name: str) -> None:
    """Which also says that each layer of low rank stands where the dense one stood."""
    torch.manual_seed(0)
    settings, shape = ARCHITECTURES[name]
    dense = ViT(settings, shape, 5).eval()
    ranks = {n: min(linear.weight.shape) for n, linear in dense.linears().items()}
    model = ViT(settings.model_copy(update={"ranks": ranks}), shape, 5).eval()
    tensors = dict(dense.state_dict())
    for n, linear in dense.linears().items():
        left, values, right = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
        tensors[f"{n}.outer.weight"], tensors[f"{n}.inner.weight"] = left * values, right
        tensors[f"{n}.outer.bias"], tensors[f"{n}.inner.bias"] = tensors.pop(f"{n}.bias"), torch.zeros(ranks[n])
        del tensors[f"{n}.weight"]
    model.load_state_dict(tensors)
    pixels = torch.rand(3, shape[2], *shape[:2]) * 255
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), dense(pixels), atol=1e-4, rtol=1e-4)


def test_columns_of_inner_factors_of_windows_are_in_the_programs_order() -> None:
    model = low_rank_model("stem")
    columns = model.program_columns()
    assert columns.keys() == model.linears().keys()
    for name, linear in model.linears().items():
        assert sorted(columns[name].tolist()) == list(range(linear.in_features)), name
        windows = name.startswith(("stem", "patch_embed")) and name.endswith("inner")
        # Of windows the program's columns run over the channels fastest, torch's slowest.
        assert (columns[name].tolist() != list(range(linear.in_features))) == windows, name


@pytest.mark.parametrize("hidden", ["static", "dynamic"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_program_equals_the_simulated_model(name: str, hidden: str) -> None:
    """Bounds as in test_lower.py and, for constant scales, test_hidden.py."""
    simulated, executed, program = outputs_of_both(quantized(low_rank_model(name), hidden))
    spread, difference = simulated.std(), np.abs(simulated - executed)
    assert np.median(difference) <= (1e-4 if hidden == "static" else 2e-5) * spread
    assert difference.max() <= (0.08 if hidden == "static" else 0.05) * spread
    assert simulated.std(axis=0).mean() > 0.01
    assert ("linear_levels" in {op.kind for op in program.ops}) == (hidden == "static")


@pytest.mark.parametrize("part", ["qkv", "attn.proj", "fc1", "fc2"])
def test_any_one_layer_alone_may_be_of_low_rank(part: str) -> None:
    model = quantized(low_rank_model("class token", (part,)), "static")
    simulated, executed, program = outputs_of_both(model)
    difference = np.abs(simulated - executed)
    assert np.median(difference) <= 1e-4 * simulated.std()
    assert difference.max() <= 0.08 * simulated.std()
    names = {tensor.name for tensor in program.tensors}
    assert {n for n in names if n.endswith(".inner.weight")} == {f"{n}.inner.weight" for n in model.settings.ranks}
    kinds = [op.kind for op in program.ops]
    # Residuals are added, and levels made, by the last product of a layer: the first is a plain one in addition.
    assert kinds.count("linear_add") == 4 and kinds.count("linear_levels") == 2
    assert kinds.count("linear") == 2 + 2 + 2


def test_constant_scales_are_of_the_factor_that_reads_the_hidden_layer() -> None:
    model = quantized(low_rank_model("class token"), "static")
    assert sorted(hidden_readers(model)) == ["blocks.0.mlp.fc2.inner", "blocks.1.mlp.fc2.inner"]
    fixed = {name for name, linear in model.linears().items() if linear.input_multiplier is not None}
    assert fixed == set(hidden_readers(model))
    program = outputs_of_both(model)[2]
    assert {t.name for t in program.tensors if t.name.endswith("multiplier")} == {
        f"{n}.input_multiplier" for n in fixed
    }


def test_every_parameter_is_in_the_program_once() -> None:
    for name in ARCHITECTURES:
        model = quantized(low_rank_model(name), "dynamic")
        program = outputs_of_both(model)[2]
        learned = [tensor for tensor in program.tensors if tensor.role in ("weight", "bias", "norm", "embedding")]
        assert sum(tensor.values.size for tensor in learned) == model.num_parameters(), name
        artifact.from_bytes(artifact.to_bytes(program), "low_rank.lil")


@pytest.mark.parametrize("stage", ["float", "static"])
def test_a_saved_model_reloads_from_its_settings(stage: str, tmp_path: Path) -> None:
    model = low_rank_model("shared")
    if stage == "static":
        quantized(model, stage)
    save_model(model, tmp_path)
    again = load_model(tmp_path).eval()
    assert again.settings == model.settings
    pixels = torch.rand(3, 3, 8, 8) * 255
    with torch.no_grad():
        assert torch.equal(again(pixels), model(pixels))


def test_a_new_model_of_low_rank_trains() -> None:
    """Factors of a model that starts with ranks are neither zero nor tiny."""
    torch.manual_seed(0)
    settings, shape = ARCHITECTURES["stem"]
    ranks = low_rank_model("stem").settings.ranks
    model = ViT(settings.model_copy(update={"ranks": ranks}), shape, 5)
    logits = model(torch.rand(8, 3, 8, 12) * 255)
    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.arange(8) % 5))
    for name, linear in model.linears().items():
        assert linear.weight.grad is not None and linear.weight.grad.abs().max() > 0, name
        assert linear.weight.std() > 0.05, name


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (
            {"blocks.7.mlp.fc1": 2},
            r"^model\.ranks: 'blocks\.7\.mlp\.fc1' is no layer; the layers are patch_embed\.proj, ",
        ),
        ({"norm": 2}, r"^model\.ranks: 'norm' is no layer; the layers are .*head$"),
        ({"head": 6}, r"^model\.ranks: 'head' = 6 must be 1 to 5: the layer has 24 inputs and 5 outputs$"),
        (
            {"patch_embed.proj": 13},
            r"'patch_embed\.proj' = 13 must be 1 to 12: the layer has 12 inputs and 24 outputs$",
        ),
        ({"head.inner": 1}, r"^model\.ranks: 'head\.inner' is no layer"),
    ],
)
def test_ranks_that_cannot_be_are_refused_in_one_line(ranks: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as refused:
        ViT(ModelSettings(patch_size=2, depth=1, ranks=ranks, **SIZES), (8, 8, 3), 5)
    assert "\n" not in str(refused.value)
    assert ViT(ModelSettings(patch_size=2, depth=1, ranks={"head": 5}, **SIZES), (8, 8, 3), 5).head.rank == 5


def test_a_dense_model_has_linear_layers_alone() -> None:
    settings, shape = ARCHITECTURES["class token"]
    model = ViT(settings, shape, 5)
    assert not low_rank_layers(model)
    assert all(type(linear) is Linear for linear in model.linears().values())
