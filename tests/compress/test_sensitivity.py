"""Formats by sensitivity: losses against their definition, the choice on planted cases, and bytes as in the file."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from lilliput import artifact
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.prune import Pruning
from lilliput.compress.quantize import Quantization
from lilliput.compress.sensitivity import Option, choose_formats, fill, inputs_seen, losses_of, size_of
from lilliput.config import ModelSettings, PruneSettings, QuantizeSettings
from lilliput.errors import FailureError, UserError
from lilliput.lower import lower
from lilliput.models.stack import WeightQuantizer
from lilliput.models.vit import ViT
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.train.calibration import random_calibration

SETTINGS = QuantizeSettings()


def model_of(embed_dim: int = 16) -> ViT:
    torch.manual_seed(0)
    sizes = {"patch_size": 4, "embed_dim": embed_dim, "depth": 2, "num_heads": 2, "mlp_dim": 2 * embed_dim}
    model = ViT(ModelSettings.model_validate(sizes), (8, 8, 1), 5).eval()
    with torch.no_grad():
        model.head.weight.mul_(20.0)
    return model


def sizes_of(model: ViT) -> dict[str, int]:
    """Of the codes in the file, by layer."""
    program = artifact.from_bytes(artifact.to_bytes(lower(model, {"labels": list("abcde")})), "x.lil")
    return {tensor.name: tensor.stored_bytes for tensor in program.tensors if tensor.role == "weight"}


def quantized(model: ViT, **settings: Any) -> Quantization:
    work = Quantization(QuantizeSettings.model_validate(settings))
    work.attach(model, random_calibration(model))
    return work


def test_the_loss_is_the_divergence_with_that_layer_alone_rounded() -> None:
    model = model_of()
    calibration = random_calibration(model, examples=20)
    names, formats = ("blocks.0.mlp.fc1", "head"), ["int4", "pot4"]
    before = copy.deepcopy(model.state_dict())
    asked = {name: formats if name in names else ["int8"] for name in model.linears()}
    losses = losses_of(model, asked, SETTINGS, calibration)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (pixels,) = inputs_seen(model, calibration, 20)
    assert pixels.shape == (20, 1, 8, 8)
    with torch.no_grad():
        expected = model(pixels).double().softmax(1).numpy()
    for name in names:
        for one in formats:
            rounded = copy.deepcopy(model)
            weight = rounded.linears()[name].weight
            quantizer = WeightQuantizer(one, len(weight))
            quantizer.search(weight.detach())
            with torch.no_grad():
                weight.copy_(quantizer(weight))
                found = rounded(pixels).double().softmax(1).numpy()
            divergence = (expected * np.log(expected / found)).sum(axis=1).mean()
            assert losses[name][one] == pytest.approx(divergence, rel=1e-5) and divergence > 0
    assert losses["patch_embed.proj"] == {"int8": 0.0}


def test_bytes_go_where_they_save_most() -> None:
    """By hand: the small layer gains 0.06 a byte, the large one 0.019 and then 0.001, and the dull one nothing."""
    options = {
        "small": [Option("int8", 20, 0.0), Option("int4", 10, 0.6)],
        "large": [Option("int8", 200, 0.0), Option("int6", 150, 0.05), Option("int4", 100, 1.0)],
        "dull": [Option("int4", 10, 0.2), Option("pot4", 10, 0.1), Option("int8", 20, 0.15)],
    }
    assert {name: one.format for name, one in fill(options, 120).items()} == {
        "small": "int4",
        "large": "int4",
        "dull": "pot4",  # of equal size the better one; more bytes would make it worse
    }
    formats = [{name: one.format for name, one in fill(options, size).items()} for size in (130, 180, 220, 230)]
    assert formats == [
        {"small": "int8", "large": "int4", "dull": "pot4"},
        {"small": "int8", "large": "int6", "dull": "pot4"},
        {"small": "int8", "large": "int6", "dull": "pot4"},
        {"small": "int8", "large": "int8", "dull": "pot4"},
    ]


@pytest.mark.parametrize("seed", range(5))
def test_as_good_as_every_choice_tried_where_steps_are_fine(seed: int) -> None:
    """On random convex losses it is within the one change that no longer fitted of the best of all choices."""
    rng = np.random.default_rng(seed)
    options = {}
    for name in "abcd":
        size, gains = int(rng.integers(5, 40)), np.sort(rng.random(2))
        losses = (gains.sum(), gains[0], 0.0)
        options[name] = [Option(str(k), size * (k + 2), float(loss)) for k, loss in enumerate(losses)]
    budget = int(sum(some[1].size for some in options.values()) * 0.9)
    chosen = fill(options, budget)
    assert sum(one.size for one in chosen.values()) <= budget
    grid = np.array(np.meshgrid(*[range(3)] * 4)).reshape(4, -1).T
    every = [[some[k] for some, k in zip(options.values(), row, strict=True)] for row in grid]
    best = min(sum(one.loss for one in row) for row in every if sum(one.size for one in row) <= budget)
    found = sum(one.loss for one in chosen.values())
    step = max(some[k].loss - some[k + 1].loss for some in options.values() for k in range(2))
    assert best <= found <= best + step


def test_a_layer_that_hardly_matters_gets_the_fewest_bits() -> None:
    """Planted: the second block adds next to nothing to the tokens."""
    model = model_of()
    with torch.no_grad():
        for name in ("blocks.1.attn.proj", "blocks.1.mlp.fc2"):
            model.linears()[name].weight.mul_(1e-4)
    most = sum(sizes_of_formats(model, "int8").values())
    formats = choose_formats(model, SETTINGS, most * 3 // 4, random_calibration(model, examples=40))
    bits = {name: WEIGHT_FORMATS[one].bits for name, one in formats.items()}
    assert np.mean([bits[name] for name in bits if name.startswith("blocks.1")]) < 5
    assert np.mean([bits[name] for name in bits if not name.startswith("blocks.1")]) > 7


def sizes_of_formats(model: ViT, one: str) -> dict[str, int]:
    weights = {name: (linear.weight != 0).numpy().astype(np.int8) for name, linear in model.linears().items()}
    return {name: size_of(weight, one) for name, weight in weights.items()}


def test_the_bytes_are_those_of_the_file_and_at_most_what_was_given() -> None:
    least, most = (sum(sizes_of_formats(model_of(), one).values()) for one in ("int4", "int8"))
    seen = []
    for code_bytes in (least, (least + most) // 2, most):
        model = model_of()
        work = quantized(model, code_bytes=code_bytes)
        seen.append(sum(sizes_of(model).values()))
        assert 0.9 * code_bytes < seen[-1] <= code_bytes
        again = model_of()
        assert quantized(again, code_bytes=code_bytes).formats == work.formats
        assert work.formats["positions"] == "int8"
        program = lower(model, {"labels": list("abcde")})
        claims = work.claims(model)
        for subject in (model, program):
            assert [one["claim"] for one in assert_ledger(claims, subject, "export")] == [
                "formats",
                "activation bits",
                "code bytes",
            ]
    assert seen == sorted(set(seen))


def test_more_bytes_than_were_given_break_the_claim() -> None:
    model = model_of()
    work = quantized(model, weight_format="int6")
    size = sum(sizes_of(model).values())
    for given, holds in ((size, True), (size - 1, False)):
        work.settings = QuantizeSettings(code_bytes=given)
        (claim,) = [one for one in work.claims(model) if one.kind == "code bytes"]
        for subject in (model, lower(model, {"labels": list("abcde")})):
            if holds:
                assert_ledger([claim], subject, "export")
            else:
                with pytest.raises(FailureError, match=rf"take at most {given} bytes \(int6: patch_embed"):
                    assert_ledger([claim], subject, "export")


def test_layers_that_are_named_keep_their_format() -> None:
    model = model_of()
    least = sum(sizes_of_formats(model, "int4").values())
    named = {"blocks.0": "int6", "blocks.0.attn.qkv": "int8"}
    formats = quantized(model, code_bytes=2 * least, formats=named).formats
    assert formats["blocks.0.attn.qkv.weight"] == "int8"
    assert {formats[f"blocks.0.{name}.weight"] for name in ("attn.proj", "mlp.fc1", "mlp.fc2")} == {"int6"}
    with pytest.raises(UserError, match=r"quantize\.formats: 'blocks\.7' is no layer"):
        quantized(model_of(), code_bytes=2 * least, formats={"blocks.7": "int8"})


def test_too_few_bytes_are_refused_with_how_many_there_must_be() -> None:
    model = model_of()
    least = sum(sizes_of_formats(model, "pot4").values())
    quantized(model_of(), code_bytes=least)
    message = rf"^quantize\.code_bytes={least - 1}: even in the smallest formats .* take {least} bytes; give at least"
    with pytest.raises(UserError, match=message):
        quantized(model, code_bytes=least - 1)


def test_pruned_blocks_take_no_bytes() -> None:
    """So a number that is too small for the whole model is enough for the pruned one."""
    model = model_of(embed_dim=32)
    whole = sum(sizes_of_formats(model, "int4").values())
    pruning = Pruning(PruneSettings(sparsity=0.75, block=(16, 16)))
    pruning.attach(model, random_calibration(model))
    with pytest.raises(UserError, match=rf"take {whole} bytes"):
        quantized(copy.deepcopy(model), code_bytes=whole * 2 // 3)
    pruning.finish(model)
    work = quantized(model, code_bytes=whole * 2 // 3)
    assert_ledger([*pruning.claims(model), *work.claims(model)], lower(model, {"labels": list("abcde")}), "export")
    assert sum(sizes_of(model).values()) <= whole * 2 // 3
