"""Constant scales of hidden activations: how they are found, what they leave as it was, and the file that they give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import lilliput
from lilliput import artifact
from lilliput.compress.base import Model
from lilliput.compress.hidden import fix_hidden_scales, hidden_readers, largest_inputs, multiplier_of
from lilliput.compress.prune import Pruning
from lilliput.compress.quantize import Quantization, attach_quantizers
from lilliput.config import ModelSettings, PruneSettings, QuantizeSettings, StemConvSettings
from lilliput.lower import lower
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.layers import Linear
from lilliput.models.stack import WeightQuantizer, levels_and_scale, push
from lilliput.models.straight_through import Activation
from lilliput.models.vit import ViT
from lilliput.program import mathfn, reference
from lilliput.program.builder import with_golden
from lilliput.program.cost import PRODUCTS
from lilliput.program.program import Program
from lilliput.runtime import isas
from lilliput.train.calibration import random_calibration

EXACT: dict[Activation, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "gelu": mathfn.coarse_gelu,
    "gelu_tanh": mathfn.coarse_gelu_tanh,
    "relu": mathfn.relu,
}
SHAPE = (8, 12, 3)
SIZES: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 44}
IMAGE_MODELS: dict[str, ModelSettings] = {
    "class token": ModelSettings(patch_size=4, **SIZES),
    "mean of a hybrid": ModelSettings(patch_size=1, pool="mean", stem=(StemConvSettings(channels=6),), **SIZES),
}
LAYER = {"num_heads": 2, "head_dim": 9, "mlp_dim": 45}
BOTTLENECK = {"num_heads": 3, "head_dim": 4, "mlp_dim": 18, "bottleneck_dim": 12, "stacked_dims": (10, 19)}
COMMON: dict[str, Any] = {"vocabulary_size": 41, "num_positions": 24, "embed_dim": 22, "pooling": "mean"}
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "bert": {"layers": (LAYER, LAYER), "normalize": True},
    "pre-norm": {"layers": (LAYER, LAYER), "norm_first": True, "activation": "gelu_tanh", "pooling": "cls"},
    "albert": {"layers": (LAYER,), "order": (0, 0, 0), "embedding_dim": 10, "projection": "sum"},
    "mobilebert": {
        "layers": (BOTTLENECK,),
        "embedding_dim": 7,
        "projection": "words",
        "trigram": True,
        "embedding_norm": "no_norm",
        "activation": "relu",
    },
}
MODELS = (*IMAGE_MODELS, *TEXT_MODELS)


def float_model(name: str) -> Model:
    """With channels of the hidden layers that differ in size."""
    torch.manual_seed(0)
    model: Model
    if name in IMAGE_MODELS:
        model = ViT(IMAGE_MODELS[name], SHAPE, 5)
        model.set_normalization(np.full(3, 120.0, np.float32), np.full(3, 60.0, np.float32))
    else:
        model = TextEncoder(EncoderSettings.model_validate(COMMON | TEXT_MODELS[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for name, linear in model.linears().items():
            if name.endswith("fc1"):
                linear.weight.mul_(torch.logspace(-0.5, 0.5, linear.out_features)[:, None])
    return model.eval()


def examples_of(model: Model) -> Any:
    """What the reference runs: 24 images, or texts of 1 to 24 tokens."""
    rng = np.random.default_rng(0)
    if isinstance(model, ViT):
        return rng.integers(0, 256, (24, SHAPE[0] * SHAPE[1], SHAPE[2]), dtype=np.uint8)
    return [rng.integers(0, 41, length).astype(np.uint32) for length in range(1, 25)]


@torch.no_grad()
def simulate(model: Model, examples: Any) -> NDArray[np.float32]:
    if isinstance(model, ViT):
        images = torch.from_numpy(examples).unflatten(1, SHAPE[:2]).permute(0, 3, 1, 2).float()
        outputs: Tensor = model(images)
    else:
        outputs = torch.stack([model(torch.from_numpy(ids.astype(np.int64))[None])[0] for ids in examples])
    return outputs.numpy()


def lowered(model: Model) -> Program:
    return lower(model, {"labels": list("abcde") if isinstance(model, ViT) else [], "provenance": {}})


def quantized(name: str, hidden: str = "static", weight_format: str = "pot4") -> Model:
    model = float_model(name)
    if hidden == "static":
        fix_hidden_scales(model, lambda: simulate(model, examples_of(model)))
    if isinstance(model, TextEncoder):
        model.merge_token_types()
    attach_quantizers(model, lambda name: weight_format)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_the_program_equals_the_simulated_model(name: str) -> None:
    """Products are exact on both sides; what is left is float rounding, and a level that it tips over now and then."""
    model = quantized(name)
    examples = examples_of(model)
    simulated, executed = simulate(model, examples), reference.run(lowered(model), examples)
    spread, difference = simulated.std(), np.abs(simulated - executed)
    assert np.median(difference) <= 1e-4 * spread
    assert difference.max() <= 0.08 * spread
    assert simulated.std(axis=0).mean() > 0.01  # a constant model would pass anything


@pytest.mark.parametrize("name", ["class token", "pre-norm", "mobilebert"])
def test_the_runtime_gives_the_references_bits(name: str, tmp_path: Path) -> None:
    model = quantized(name)
    examples = examples_of(model)
    program = with_golden(lowered(model), examples[:2])
    artifact.write(program, tmp_path / "model.lil")
    expected = reference.run(program, examples)
    inputs = examples.reshape(-1, *SHAPE) if isinstance(model, ViT) else examples
    for isa in isas():
        with lilliput.open(tmp_path / "model.lil", isa=isa) as session:
            assert session.verify_golden() == 2
            assert np.array_equal(session.run(inputs).view(np.uint32), expected.view(np.uint32)), isa


def pairs_of(program: Program) -> list[tuple[str, str, bool]]:
    """The kinds of each two products of which one reads levels of the other, and whether their scales are read too."""
    writers = {op.outputs[0]: op.kind for op in program.ops}
    readers = [op for op in program.ops if op.kind in PRODUCTS and writers[op.inputs[0]] != "quantize"]
    return [(writers[op.inputs[0]], op.kind, op.inputs[1] != op.inputs[0]) for op in readers]


@pytest.mark.parametrize("name", MODELS)
def test_every_hidden_layer_is_levels_in_the_program(name: str) -> None:
    """Also of a block that is run at several depths: each time with the one multiplier of its layer."""
    static, dynamic = (lowered(quantized(name, hidden)) for hidden in ("static", "dynamic"))
    kinds = [[op.kind for op in program.ops] for program in (static, dynamic)]
    count = kinds[0].count("linear_levels")
    assert count == {"albert": 3, "mobilebert": 3}.get(name, 2)
    assert pairs_of(static) == [("linear_levels", "linear_add", False)] * count
    assert kinds[1].count("quantize") - kinds[0].count("quantize") == count  # no pass over the hidden layer
    multipliers = [t for t in static.tensors if t.name.endswith(".input_multiplier")]
    assert len(multipliers) == len(hidden_readers(float_model(name)))
    assert {(tensor.role, tensor.format) for tensor in multipliers} == {("scale", "bf16")}
    read = {op.tensors[3] for op in static.ops if op.kind == "linear_levels"}
    assert [static.tensors[index].name for index in sorted(read)] == [tensor.name for tensor in multipliers]


@pytest.mark.parametrize("name", MODELS)
def test_found_for_each_row_the_program_has_the_ops_of_before(name: str) -> None:
    model = quantized(name, "dynamic")
    program = lowered(model)
    assert {linear.input_multiplier for linear in model.linears().values()} == {None}
    assert pairs_of(program) == []
    assert not [op for op in program.ops if op.kind == "linear_levels" or op.inputs[:1] == op.inputs[1:2]]


@pytest.mark.parametrize("weight_format", ["int8", "int6", "int4"])
def test_levels_in_the_program_are_the_models_levels(weight_format: str) -> None:
    model = quantized("class token", weight_format=weight_format)
    tensors = {tensor.name: tensor.values for tensor in lowered(model).tensors}
    for name, linear in hidden_readers(model).items():
        levels, scale = levels_and_scale(linear, "weight")
        assert np.array_equal(tensors[f"{name}.weight"], levels.numpy())
        assert np.array_equal(tensors[f"{name}.weight.scale"][0], scale.numpy() * np.float32(linear.input_scale()))
        assert linear.input_multiplier is not None
        assert np.array_equal(tensors[f"{name}.input_multiplier"][0], linear.input_multiplier.numpy())


def test_they_cost_little() -> None:
    """At 8 bits both are near the float model."""
    exact = simulate(float_model("class token"), examples_of(float_model("class token")))
    errors = {}
    for hidden in ("static", "dynamic"):
        model = quantized("class token", hidden, "int8")
        errors[hidden] = np.abs(simulate(model, examples_of(model)) - exact).mean() / exact.std()
    assert errors["static"] < 0.05
    assert errors["static"] < 3 * errors["dynamic"]


# The recipe's setting -------------------------------------------------------------------------------


def prepared(hidden: str) -> ViT:
    model = float_model("class token")
    assert isinstance(model, ViT)
    Quantization(QuantizeSettings.model_validate({"hidden": hidden})).attach(model, random_calibration(model))
    return model


def test_the_stage_finds_them_before_weights_are_rounded() -> None:
    model = prepared("static")
    readers = hidden_readers(model)
    assert sorted(readers) == ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2"]
    fixed = {name for name, linear in model.linears().items() if linear.input_multiplier is not None}
    assert fixed == set(readers)
    assert "linear_levels" in {op.kind for op in lowered(model).ops}
    assert QuantizeSettings().hidden == "static"


def test_the_stage_leaves_scales_to_the_runtime_if_told_to() -> None:
    model = prepared("dynamic")
    assert all(linear.input_multiplier is None for linear in model.linears().values())
    assert "linear_levels" not in {op.kind for op in lowered(model).ops}


def test_pruned_weights_stay_zero() -> None:
    model = float_model("class token")
    assert isinstance(model, ViT)
    pruning = Pruning(PruneSettings(sparsity=0.6))
    pruning.attach(model, random_calibration(model))
    pruning.finish(model)
    zeros = {name: linear.weight == 0 for name, linear in hidden_readers(model).items()}
    fix_hidden_scales(model, lambda: simulate(model, examples_of(model)))
    attach_quantizers(model, lambda name: "int8")
    tensors = {tensor.name: tensor.values for tensor in lowered(model).tensors}
    for name, zero in zeros.items():
        assert zero.float().mean() > 0.4
        assert not tensors[f"{name}.weight"][zero.numpy()].any()


# Where they come from -------------------------------------------------------------------------------


def test_largest_inputs_of_each_channel() -> None:
    model = float_model("bert")
    texts, seen = examples_of(model), []
    reader = hidden_readers(model)["blocks.1.mlp.fc2"]
    hook = reader.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(end_dim=-2)))
    largest = largest_inputs(hidden_readers(model), lambda: simulate(model, texts))
    hook.remove()
    assert torch.equal(largest["blocks.1.mlp.fc2"], torch.cat(seen).abs().amax(dim=0))
    assert largest["blocks.1.mlp.fc2"].shape == (45,)


def test_nothing_is_left_that_looks_on() -> None:
    model = float_model("class token")

    def fail() -> None:
        raise RuntimeError("out of images")

    with pytest.raises(RuntimeError, match="out of images"):
        largest_inputs(hidden_readers(model), fail)
    assert not any(linear._forward_pre_hooks for linear in model.linears().values())


def test_multiplier_is_halfway_between_a_channel_and_the_largest() -> None:
    found = multiplier_of(torch.tensor([4.0, 1.0, 0.25, 1e-7, 0.0]))
    halfway = torch.tensor([6.0, 2.0, 1.0, 0.04, 0.04])  # below 1e-4 of the largest there is nothing to look at
    assert torch.equal(found, (127 / halfway).to(torch.bfloat16).float())


def test_multiplier_leaves_headroom() -> None:
    """Half as large again as what was seen is the last level at most, but for bfloat16's rounding."""
    largest = torch.from_numpy(np.random.default_rng(0).lognormal(0, 3, 200).astype(np.float32))
    levels = 1.5 * largest * multiplier_of(largest)
    assert levels.max() <= 127 * (1 + 2**-8)
    assert levels[largest.argmax()] >= 127 * (1 - 2**-8)


def quantized_by_stage(bits: int) -> ViT:
    torch.manual_seed(0)
    model = ViT(IMAGE_MODELS["class token"], SHAPE, 5)
    settings = QuantizeSettings.model_validate({"activation_bits": bits})
    Quantization(settings).attach(model, random_calibration(model))
    return model


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (6, 31), (4, 7)])
def test_the_stage_makes_levels_of_as_many_bits_as_it_is_told(bits: int, most: int) -> None:
    """Of every layer's input; those with constant scales fill the range that these bits have as 8 bits would theirs."""
    linears, of_8_bits = (quantized_by_stage(number).linears() for number in (bits, 8))
    assert {linear.input_bits for linear in linears.values()} == {bits}
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc2"):  # of which the second has constant scales
        levels, _ = linears[name].quantize_input(1e6 * torch.randn(20, linears[name].in_features))
        assert levels.abs().max() == most
    found, wanted = (each["blocks.1.mlp.fc2"].input_multiplier for each in (linears, of_8_bits))
    assert found is not None and wanted is not None
    torch.testing.assert_close(found, wanted * most / 127, rtol=2**-7, atol=0)


@pytest.mark.parametrize("limit", [31.0, 7.0])
def test_multiplier_fills_the_range_of_fewer_levels(limit: float) -> None:
    largest = torch.tensor([4.0, 1.0, 0.25])
    halfway = torch.tensor([6.0, 2.0, 1.0])
    assert torch.equal(multiplier_of(largest, limit), (limit / halfway).to(torch.bfloat16).float())
    assert multiplier_of(torch.zeros(2), limit).tolist() == [limit] * 2


def test_multiplier_of_a_layer_that_is_always_zero() -> None:
    assert multiplier_of(torch.zeros(5)).tolist() == [127.0] * 5
    model = float_model("class token")
    with torch.no_grad():
        for name, linear in model.linears().items():
            if name.endswith("fc1"):
                linear.weight.zero_()
                linear.bias.zero_()
    fix_hidden_scales(model, lambda: simulate(model, examples_of(model)))
    attach_quantizers(model, lambda name: "int8")
    examples = examples_of(model)
    simulated, executed = simulate(model, examples), reference.run(lowered(model), examples)
    assert np.isfinite(executed).all()
    assert np.abs(simulated - executed).max() <= 0.08 * simulated.std()


# What a layer makes of them -------------------------------------------------------------------------


def test_a_layer_keeps_its_function_and_its_size() -> None:
    torch.manual_seed(1)
    linear = Linear(30, 7)
    weight, multiplier = linear.weight.detach().clone(), torch.logspace(0, 1.5, 30).to(torch.bfloat16).float()
    linear.fix_input_scales(multiplier)
    scale = linear.input_scale()
    assert np.log2(scale) == round(np.log2(scale)), "so that scales stay bfloat16"
    torch.testing.assert_close(linear.weight * (multiplier * scale), weight)
    assert abs((multiplier * scale).log2().mean()) <= 0.5
    quantizer = WeightQuantizer("int8", 7)
    quantizer.search(linear.weight.detach())
    push(linear, "weight", quantizer)
    x = (torch.rand(50, 30) - 0.5) / multiplier * 250  # within the levels
    with torch.no_grad():
        expected = F.linear(x, weight, linear.bias)
        torch.testing.assert_close(linear(x), expected, atol=0.02 * float(expected.std()), rtol=0.02)


def test_levels_are_the_programs_and_gradients_stop_where_they_are_clipped() -> None:
    linear = Linear(4, 2)
    linear.fix_input_scales(torch.tensor([2.0, 10.0, 127.0, 0.5]))
    x = torch.tensor([[0.25, 0.75, -5.0, 0.0], [-0.75, 12.7, 0.5, 999.0]], requires_grad=True)
    levels, scale = linear.quantize_input(x)
    # half to even; clipped at 127; on the edge; 127 * 0.5 is 63.5
    assert levels.tolist() == [[0.0, 8.0, -127.0, 0.0], [-2.0, 127.0, 64.0, 127.0]]
    assert scale == linear.input_scale()
    torch.autograd.backward(levels.sum())
    assert x.grad is not None
    assert x.grad.tolist() == [[2.0, 10.0, 0.0, 0.5], [2.0, 10.0, 127.0, 0.0]]
