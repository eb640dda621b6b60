"""Quantisation as a pass: what it applies to, its claims and how they break, and a run that trains nothing in it."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from lilliput import artifact, pipeline
from lilliput.compress import Claim
from lilliput.compress.error_feedback import round_with_feedback
from lilliput.compress.ledger import assert_ledger, count_zeros
from lilliput.compress.prune import apply_masks
from lilliput.compress.quantize import Quantization
from lilliput.config import ModelSettings, QuantizeSettings, parse_recipe
from lilliput.errors import FailureError, RecipeError, UserError
from lilliput.lower import lower
from lilliput.models.checkpoint import load_model, save_model
from lilliput.models.stack import Mask, WeightQuantizer, copy_of, layer_of, push
from lilliput.models.vit import ViT
from lilliput.program import reference
from lilliput.program.program import Program
from lilliput.train.calibration import random_calibration
from lilliput.train.loop import parameter_groups

BROKEN = r"after 'export' the guarantee of 'quantize' is broken: matrices are int4 \(2\), pot4 \(6\), vectors bf16"
SIZES = {"patch_size": 4, "embed_dim": 16, "num_heads": 2, "mlp_dim": 24}
MODELS = {
    "plain": ModelSettings.model_validate(SIZES | {"depth": 2}),
    "shared": ModelSettings.model_validate(SIZES | {"depth": 2, "order": (0, 1, 0)}),
    "low rank": ModelSettings.model_validate(
        SIZES | {"depth": 1, "ranks": {f"blocks.0.{name}": 6 for name in ("attn.qkv", "mlp.fc1", "mlp.fc2")}}
    ),
    "two heads": ModelSettings.model_validate(SIZES | {"depth": 1, "distillation": "head"}),
}


def quantized() -> tuple[ViT, Quantization]:
    torch.manual_seed(0)
    model = ViT(ModelSettings(patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_dim=24), (8, 8, 1), 5)
    work = Quantization(QuantizeSettings(weight_format="pot4", embedding_format="int4"))
    work.attach(model, random_calibration(model))
    return model, work


def program_of(model: ViT) -> Program:
    return lower(model, {"labels": [str(label) for label in range(5)]})


def test_it_applies_to_every_learned_parameter() -> None:
    torch.manual_seed(0)
    model = ViT(ModelSettings(patch_size=4, embed_dim=16, depth=1, num_heads=2, mlp_dim=24), (8, 8, 1), 5)
    assert sorted(Quantization(QuantizeSettings()).applies_to(model)) == sorted(n for n, _ in model.named_parameters())


def test_the_claim_holds_on_the_model_and_on_its_program() -> None:
    model, work = quantized()
    for subject in (model, program_of(model)):
        records = assert_ledger(work.claims(model), subject, "export")
        assert [(record["claim"], record["holds"]) for record in records] == [
            ("formats", True),
            ("activation bits", True),
        ]


def test_other_activation_bits_break_the_claim() -> None:
    model, work = quantized()
    claims = work.claims(model)
    model.head.input_bits = 6
    for subject in (model, program_of(model)):
        with pytest.raises(FailureError, match="every product with weights has 8 bits"):
            assert_ledger(claims, subject, "export")


@pytest.mark.parametrize("embedding_format", ["int6", "int8"])
def test_six_bits_are_in_the_file(embedding_format: str) -> None:
    torch.manual_seed(0)
    model = ViT(ModelSettings(patch_size=4, embed_dim=20, depth=1, num_heads=2, mlp_dim=24), (8, 8, 1), 5)
    work = Quantization(
        QuantizeSettings.model_validate({"weight_format": "int6", "embedding_format": embedding_format})
    )
    work.attach(model, random_calibration(model))
    program = artifact.from_bytes(artifact.to_bytes(program_of(model)), "six.lil")
    assert_ledger(work.claims(model), program, "export")
    weight = next(tensor for tensor in program.tensors if tensor.name == "blocks.0.mlp.fc1.weight")  # 24 x 20
    assert weight.stored_bytes == 32 * 32 * 6 // 8
    assert np.abs(weight.values).max() == 31
    positions = next(tensor for tensor in program.tensors if tensor.name == "positions")  # 5 x 20
    assert positions.stored_bytes == 5 * 20 * (6 if embedding_format == "int6" else 8) // 8


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "positions", "blocks.0.norm1.weight", "head.bias"])
def test_one_tensor_of_another_format_in_the_file_breaks_it(name: str) -> None:
    model, work = quantized()
    program = program_of(model)
    changed = tuple(replace(tensor, format="f32") if tensor.name == name else tensor for tensor in program.tensors)
    assert changed != program.tensors
    with pytest.raises(FailureError, match=BROKEN):
        assert_ledger(work.claims(model), replace(program, tensors=changed), "export")


def test_one_weight_of_another_format_in_the_model_breaks_it() -> None:
    model, work = quantized()
    quantizer = layer_of(model.linears()["blocks.0.attn.proj"], "weight", WeightQuantizer)
    assert quantizer is not None
    quantizer.format_name = "int8"
    with pytest.raises(FailureError, match=BROKEN):
        assert_ledger(work.claims(model), model, "export")


def model_of(name: str, pruned: bool = False) -> ViT:
    """With a mask on every weight, of which half are zero, if it is pruned."""
    torch.manual_seed(0)
    model = ViT(MODELS[name], (8, 8, 1), 5).eval()
    model.set_normalization(np.full(1, 120.0, np.float32), np.full(1, 60.0, np.float32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if pruned:
        for linear in model.linears().values():
            push(linear, "weight", Mask(linear.weight))
            mask = layer_of(linear, "weight", Mask)
            assert mask is not None
            mask.mask.copy_((torch.rand(linear.weight.shape) > 0.5).float())
        apply_masks(model)
    return model


def quantization(**settings: Any) -> Quantization:
    return Quantization(QuantizeSettings.model_validate(settings))


def images(count: int = 48) -> torch.Tensor:
    """Not those that `random_calibration` has."""
    return torch.from_numpy(np.random.default_rng(9).integers(0, 256, (count, 1, 8, 8), np.uint8)).float()


def error(model: ViT, original: ViT) -> float:
    with torch.no_grad():
        found, expected = model.eval()(images()), original(images())
    return float((found - expected).square().sum() / (expected - expected.mean(0)).square().sum())


def test_the_longest_name_that_fits_gives_the_format() -> None:
    model = model_of("plain")
    formats = {"blocks.1": "int8", "blocks.1.mlp.fc1": "int6", "head": "int4"}
    work = quantization(weight_format="pot4", embedding_format="int4", formats=formats)
    work.attach(model, random_calibration(model))
    program = artifact.from_bytes(artifact.to_bytes(program_of(model)), "mixed.lil")
    found = {tensor.name: tensor.format for tensor in program.tensors if tensor.role == "weight"}
    others = {f"blocks.1.{name}.weight": "int8" for name in ("attn.qkv", "attn.proj", "mlp.fc2")}
    assert found == dict.fromkeys(found, "pot4") | others | {"blocks.1.mlp.fc1.weight": "int6", "head.weight": "int4"}
    for subject in (model, program):
        assert_ledger(work.claims(model), subject, "export")


@pytest.mark.parametrize("name", ["blocks.2", "block", "positions"])
def test_a_name_of_no_layer_is_refused(name: str) -> None:
    model = model_of("plain")
    with pytest.raises(UserError, match=rf"^quantize\.formats: '{name}' is no layer; the layers are patch"):
        quantization(formats={name: "int8"}).attach(model, random_calibration(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"code_bytes": 9, "weight_format": "int4"}, "code_bytes and weight_format exclude each other"),
        ({"epochs": 0, "scales": "learned"}, "scales='learned' needs epochs; with epochs=0 they are 'searched' or"),
    ],
)
def test_what_has_no_effect_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"name": "x", "quantize": settings}, "test")


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("name", ["plain", "two heads"])
def test_powers_of_two_stay_in_the_model_and_in_the_file(name: str, epochs: int) -> None:
    model = model_of(name)
    work = quantization(scales="power_of_two", epochs=epochs, weight_format="int6", embedding_format="pot4")
    work.attach(model, random_calibration(model))
    optimizer = torch.optim.AdamW(parameter_groups(model, QuantizeSettings()), lr=1e-2)
    for _ in range(3):  # any training that comes
        optimizer.zero_grad()
        model(images()).square().mean().backward()
        optimizer.step()
    program = artifact.from_bytes(artifact.to_bytes(program_of(model)), "shift.lil")
    claims = work.claims(model)
    assert [claim.kind for claim in claims] == ["formats", "activation bits", "power-of-two scales"]
    for subject in (model, program):
        assert [record["holds"] for record in assert_ledger(claims, subject, "export")] == [True] * 3
    names = {f"{tensor.name}.scale" for tensor in program.tensors if tensor.is_codes}
    assert {"positions.scale", "head.weight.scale", "blocks.0.mlp.fc2.weight.scale"} <= names
    for tensor in program.tensors:
        if tensor.name in names:
            assert set(np.log2(tensor.values.astype(np.float64)).ravel() % 1) == {0.0}, tensor.name


@pytest.mark.parametrize("tensor", ["head.weight", "positions"])
def test_a_scale_that_is_no_power_of_two_breaks_the_claim(tensor: str) -> None:
    model = model_of("plain")
    work = quantization(scales="power_of_two")
    work.attach(model, random_calibration(model))
    program, broken = program_of(model), r"'quantize' is broken: the scales of all matrices are powers of two"
    changed = tuple(
        replace(one, values=one.values * np.float32(1.5)) if one.name == f"{tensor}.scale" else one
        for one in program.tensors
    )
    with pytest.raises(FailureError, match=broken):
        assert_ledger(work.claims(model), replace(program, tensors=changed), "export")
    module: torch.nn.Module = model if tensor == "positions" else model.linears()["head"]
    quantizer = layer_of(module, tensor.removeprefix("head."), WeightQuantizer)
    assert quantizer is not None
    with torch.no_grad():
        quantizer.scale[1] *= 0.75
    with pytest.raises(FailureError, match=broken):
        assert_ledger(work.claims(model), model, "finetune")


@pytest.mark.parametrize("name", MODELS)
def test_without_training_weights_are_rounded_by_what_they_do(name: str) -> None:
    """Nearer to the original than the nearest levels are; zeros stay; the file computes the same, and it reloads."""
    original = model_of(name, pruned=True)
    model, plain = copy_of(original), copy_of(original)
    zeros, weights = count_zeros(original)
    work = quantization(weight_format="int4", epochs=0)
    work.attach(model, random_calibration(model, examples=200))
    quantization(weight_format="int4").attach(plain, random_calibration(plain, examples=200))
    assert error(model, original) < 0.8 * error(plain, original)
    claims = [*work.claims(model), Claim("sparsity", "prune", "zeros", {"zeros": zeros, "weights": weights})]
    program = artifact.from_bytes(artifact.to_bytes(program_of(model)), "rounded.lil")
    for subject in (model, program):
        assert_ledger(claims, subject, "export")
    executed = reference.run(program, images().numpy().astype(np.uint8).reshape(48, 64, 1))
    with torch.no_grad():
        simulated = model(images()).numpy()
    assert np.abs(simulated - executed).max() < 0.05 * simulated.std()


@pytest.mark.parametrize("hidden", ["static", "dynamic"])
def test_what_was_rounded_without_training_reloads(tmp_path: Path, hidden: str) -> None:
    model = model_of("low rank", pruned=True)
    quantization(epochs=0, hidden=hidden, scales="power_of_two").attach(model, random_calibration(model))
    save_model(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).eval()(images()), model(images()))


def test_a_masked_weight_gets_nothing_and_passes_its_error_on() -> None:
    """All inputs are always equal, so only the sum of a row counts. 9 is cut to 7; the missing 2 are to go to the
    others, half of it each; what is masked hands its half on."""
    quantizer = WeightQuantizer("int4", 1)
    weight, hessian = torch.tensor([[9.0, 0.0, 0.0]]), torch.ones(3, 3, dtype=torch.float64)
    assert round_with_feedback(weight, hessian, quantizer, 1e-6).tolist() == [[7.0, 1.0, 1.0]]
    mask = torch.tensor([[1.0, 0.0, 1.0]])
    assert round_with_feedback(weight, hessian, quantizer, 1e-6, mask).tolist() == [[7.0, 0.0, 2.0]]


def test_a_run_that_trains_nothing_in_quantize(tmp_path: Path) -> None:
    """From the digits to the page: formats by sensitivity, powers of two, zeros, and a history of no epoch."""
    short = {"epochs": 2, "batch_size": 64, "lr": 5e-3}
    quantize = {"epochs": 0, "code_bytes": 1500, "scales": "power_of_two", "formats": {"head": "int8"}}
    settings = {
        "name": "rounded",
        "data": {"name": "digits"},
        "model": SIZES | {"depth": 1},
        "train": short,
        "prune": short | {"sparsity": 0.5},
        "quantize": quantize,
        "stages": ["train", "prune", "quantize", "export", "evaluate", "report"],
    }
    said = io.StringIO()
    folder = pipeline.run(parse_recipe(settings, "test"), tmp_path, Console(file=said, width=200))
    records = {one["stage"]: one for one in json.loads((folder / "records.json").read_text())["stages"]}
    assert records["quantize"]["history"] == [] and len(records["prune"]["history"]) == 2
    checked = {one["claim"]: one for one in records["export"]["ledger"]}
    assert set(checked) == {"sparsity", "formats", "activation bits", "power-of-two scales", "code bytes"}
    assert checked["code bytes"]["detail"].startswith("the codes of all weights take at most 1500 bytes (")
    assert "int8: head" in checked["code bytes"]["detail"]
    program = artifact.read(folder / "model.lil")
    weights = [tensor for tensor in program.tensors if tensor.role == "weight"]
    assert 1100 < sum(tensor.stored_bytes for tensor in weights) <= 1500
    assert len({tensor.format for tensor in weights}) > 1
    assert records["evaluate"]["differing_predictions"] <= 1
    assert abs(records["quantize"]["test_accuracy"] - records["prune"]["test_accuracy"]) < 0.05
    assert re.search(r"done quantize +[\d.]+ s  validation [\d.]+%", said.getvalue()), said.getvalue()
    assert "prune" in (folder / "report.html").read_text()
