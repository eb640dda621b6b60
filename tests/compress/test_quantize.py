"""Quantisation as a pass: what it applies to, and a claim on formats that can be broken."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lilliput import artifact
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.quantize import Quantization
from lilliput.config import ModelSettings, QuantizeSettings
from lilliput.errors import FailureError
from lilliput.lower import lower
from lilliput.models.stack import WeightQuantizer, layer_of
from lilliput.models.vit import ViT
from lilliput.program.program import Program
from lilliput.train.calibration import random_calibration

BROKEN = (
    r"after 'export' the guarantee of 'quantize' is broken: every linear and projection weight is pot4, every .* int4"
)


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
        assert [record["holds"] for record in assert_ledger(work.claims(model), subject, "export")] == [True]


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
