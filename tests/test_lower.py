"""Lowering: the program computes what the simulated model computes, and refuses what it cannot."""

import numpy as np
import pytest
import torch
from torch import nn

from lilliput import artifact
from lilliput.compress.quantize import Quantization
from lilliput.config import LayerSettings, ModelSettings, QuantizeSettings, StemConvSettings
from lilliput.lower import LoweringError, lower
from lilliput.lower.blocks import lower_block
from lilliput.lower.emit import Emitter
from lilliput.models.stack import base_of
from lilliput.models.vit import ViT
from lilliput.program import reference
from lilliput.program.cost import macs
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.train.calibration import random_calibration

HYBRID = (StemConvSettings(channels=6), StemConvSettings(channels=10, stride=1))
ARCHITECTURES = {
    "class token": (ModelSettings(patch_size=2, embed_dim=24, depth=2, num_heads=3, mlp_dim=40), (8, 8, 1)),
    "mean pooling, sinusoidal": (
        ModelSettings(
            patch_size=4, embed_dim=20, depth=1, num_heads=2, mlp_dim=33, pool="mean", positions="sinusoidal"
        ),
        (8, 12, 3),
    ),
    "hybrid": (ModelSettings(patch_size=1, embed_dim=16, depth=1, num_heads=2, mlp_dim=24, stem=HYBRID), (9, 7, 3)),
    "stem and patches": (ModelSettings(patch_size=2, embed_dim=16, depth=1, num_heads=2, stem=HYBRID[:1]), (16, 8, 1)),
    "ragged heads": (
        ModelSettings(
            patch_size=4,
            embed_dim=24,
            layers=(
                LayerSettings(num_heads=3, head_dim=7, mlp_dim=9),
                LayerSettings(num_heads=1, head_dim=16, mlp_dim=50),
            ),
        ),
        (8, 8, 1),
    ),
}
DEIT = ModelSettings(patch_size=4, embed_dim=24, depth=2, num_heads=3, mlp_dim=40, distillation="head")
ARCHITECTURES |= {
    "distillation token": (DEIT.model_copy(update={"distillation": "token"}), (8, 8, 1)),
    "distillation head": (DEIT, (8, 12, 3)),
}
METADATA = {"labels": [str(i) for i in range(5)], "provenance": {}}


def quantized_model(name: str, weight_format: str = "pot4", bits: int = 8, hidden: str = "dynamic") -> ViT:
    torch.manual_seed(0)
    settings, shape = ARCHITECTURES[name]
    model = ViT(settings, shape, 5)
    model.set_normalization(np.full(shape[2], 120.0, np.float32), np.full(shape[2], 60.0, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases and norms too
    settings_of_stage = {"weight_format": weight_format, "hidden": hidden, "activation_bits": bits}
    Quantization(QuantizeSettings.model_validate(settings_of_stage)).attach(model, random_calibration(model))
    return model.eval()


def outputs_of_both(model: ViT, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    height, width, channels = model.image_shape
    images = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    images[0], images[1] = 0, 255
    program = lower(model, METADATA)
    with torch.no_grad():
        simulated = model(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
    return simulated, reference.run(program, images.reshape(count, height * width, channels))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_program_equals_the_simulated_model(name: str) -> None:
    """Products are exact on both sides; what is left is float rounding, and a level that it tips over now and then."""
    simulated, executed = outputs_of_both(quantized_model(name))
    spread = simulated.std()
    difference = np.abs(simulated - executed)
    assert np.median(difference) <= 2e-5 * spread
    assert difference.max() <= 0.05 * spread
    assert spread > 0.01  # a constant model would pass anything


@pytest.mark.parametrize("name", ["class token", "hybrid", "ragged heads"])
def test_the_class_token_alone_gives_the_bits_of_all_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized_model(name)
    pruned = lower(model, METADATA)

    def whole(emit: Emitter, name: str, block: nn.Module, x: int, first_row_only: bool = False) -> int:
        y = lower_block(emit, name, block, x)
        return emit.row(y, 0) if first_row_only else y

    monkeypatch.setattr("lilliput.lower.images.lower_block", whole)
    full = lower(model, METADATA)
    images = np.random.default_rng(1).integers(0, 256, (32, *model.image_shape), dtype=np.uint8)
    rows = images.reshape(32, -1, model.image_shape[2])
    assert np.array_equal(reference.run(pruned, rows).view(np.uint32), reference.run(full, rows).view(np.uint32))
    assert macs(pruned) < macs(full)
    of_full, of_pruned = (
        {op.kind: op.attributes for op in p.ops}["table_attention"]["num_queries"] for p in (full, pruned)
    )
    assert (of_full, of_pruned) == (0, 1)
    last_attention = max(index for index, op in enumerate(pruned.ops) if op.kind == "table_attention")
    assert {pruned.buffers[op.outputs[0]].rows for op in pruned.ops[last_attention:]} == {1}


def test_all_tokens_are_computed_where_all_are_pooled() -> None:
    program = lower(quantized_model("mean pooling, sinusoidal"), METADATA)
    assert [op.attributes["num_queries"] for op in program.ops if op.kind == "table_attention"] == [0]
    assert "select_row" not in {op.kind for op in program.ops}


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_every_weight_format_lowers(weight_format: str) -> None:
    model = quantized_model("class token", weight_format)
    program = lower(model, METADATA)
    assert {tensor.format for tensor in program.tensors if tensor.role == "weight"} == {weight_format}
    simulated, executed = outputs_of_both(model)
    assert np.abs(simulated - executed).max() <= 0.05 * simulated.std()


@pytest.mark.parametrize("hidden", ["dynamic", "static"])
@pytest.mark.parametrize("bits", [6, 4])
def test_activations_of_fewer_bits_lower(bits: int, hidden: str) -> None:
    model = quantized_model("class token", "apot4", bits, hidden)
    program = lower(model, METADATA)
    written = [op.attributes["bits"] for op in program.ops if "bits" in op.attributes]
    assert set(written) == {bits}
    assert ("linear_levels" in {op.kind for op in program.ops}) == (hidden == "static")
    assert artifact.from_bytes(artifact.to_bytes(program), "bits.lil").version == 2
    simulated, executed = outputs_of_both(model)
    difference, spread = np.abs(simulated - executed), simulated.std()
    assert np.median(difference) <= 2e-5 * spread
    assert difference.max() <= (0.2 if bits == 4 else 0.1) * spread  # where a level tips over, a step is larger


def test_layers_that_read_the_same_share_levels_of_the_same_bits() -> None:
    emit = Emitter({})
    x = emit.builder.input("image", 2, 3)
    constants = [emit.vector(name, "constant", torch.ones(3), "f32") for name in "ab"]
    x = emit.builder.emit("normalize", [x], constants)
    assert emit.quantize(x, 8) == emit.quantize(x, 8)
    assert emit.quantize(x, 8) != emit.quantize(x, 4)
    assert emit.quantize(x, 4) == emit.quantize(x, 4)
    assert len({emit.quantize(x, bits) for bits in (8, 6, 4)}) == 3


@pytest.mark.parametrize("weight_format", WEIGHT_FORMATS)
def test_weights_with_zero_blocks_are_stored_without_them(weight_format: str) -> None:
    model = quantized_model("class token", weight_format)
    with torch.no_grad():
        weight = base_of(model.linears()["blocks.0.mlp.fc1"], "weight")  # 40 x 24
        weight[:32, :16] = 0.0
        base_of(model.linears()["blocks.0.mlp.fc2"], "weight")[:, 3] = 0.0  # no block of it is zero
    program = lower(model, METADATA)
    layouts = {tensor.name: tensor.layout for tensor in program.tensors if tensor.role == "weight"}
    assert {name for name, layout in layouts.items() if layout != "tiles"} == {"blocks.0.mlp.fc1.weight"}
    assert layouts["blocks.0.mlp.fc1.weight"] == "blocks"
    simulated, executed = outputs_of_both(model)
    assert np.abs(simulated - executed).max() <= 0.05 * simulated.std()
    decoded = artifact.from_bytes(artifact.to_bytes(program), "sparse.lil")
    for tensor, read in zip(program.tensors, decoded.tensors, strict=True):
        assert np.array_equal(tensor.values, read.values)


def test_parameters_are_all_in_the_program_once() -> None:
    for name in ARCHITECTURES:
        model = quantized_model(name)
        program = lower(model, METADATA)
        learned = [tensor for tensor in program.tensors if tensor.role in ("weight", "bias", "norm", "embedding")]
        assert sum(tensor.values.size for tensor in learned) == model.num_parameters(), name


def test_levels_in_the_program_are_the_models_levels() -> None:
    model = quantized_model("class token")
    program = lower(model, METADATA)
    tensors = {tensor.name: tensor.values for tensor in program.tensors}
    weight = model.blocks[0].mlp.fc1.weight.detach().numpy()
    rebuilt = tensors["blocks.0.mlp.fc1.weight"] * tensors["blocks.0.mlp.fc1.weight.scale"].reshape(-1, 1)
    assert np.array_equal(rebuilt.astype(np.float32), weight)


def test_nan_in_a_weight_is_refused_by_name() -> None:
    model = quantized_model("class token")
    with torch.no_grad():
        base_of(model.linears()["blocks.1.attn.proj"], "weight")[3, 2] = float("nan")
    with pytest.raises(LoweringError, match=r"blocks\.1\.attn\.proj.*has NaN or infinite values"):
        lower(model, METADATA)


def test_an_unquantised_model_is_refused_with_what_to_do() -> None:
    settings, shape = ARCHITECTURES["class token"]
    with pytest.raises(LoweringError, match=r"is not quantised; run the stage 'quantize' before 'export'"):
        lower(ViT(settings, shape, 5), METADATA)
