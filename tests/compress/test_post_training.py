"""Post-training quantisation of text encoders: all families, the claim on formats, and that it beats plain rounding."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lilliput.compress.ledger import assert_ledger
from lilliput.compress.post_training import format_claim, linear_formats, quantize_post_training
from lilliput.compress.quantize import attach_quantizers
from lilliput.data.text import Sequences
from lilliput.errors import FailureError, UserError
from lilliput.lower import lower
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.stack import levels_and_scale
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.text_config import PostTrainingSettings
from lilliput.train.distill import outputs

LAYER = {"num_heads": 2, "head_dim": 12, "mlp_dim": 48}
BOTTLENECK = {"num_heads": 2, "head_dim": 8, "mlp_dim": 32, "bottleneck_dim": 16, "stacked_dims": (24,)}
COMMON: dict[str, Any] = {"vocabulary_size": 50, "num_positions": 16, "embed_dim": 24, "pooling": "mean"}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {"layers": (LAYER, LAYER), "token_types": 2, "normalize": True},
    "classifier": {"layers": (LAYER,), "norm_first": True, "head": {"labels": ("a", "b", "c"), "hidden_dim": 20}},
    "albert": {"layers": (LAYER, LAYER), "order": (0, 1, 0), "embedding_dim": 12, "projection": "sum"},
    "mobilebert": {
        "layers": (BOTTLENECK, BOTTLENECK),
        "embedding_dim": 12,
        "projection": "words",
        "trigram": True,
        "embedding_norm": "no_norm",
        "activation": "relu",
    },
}
SETTINGS = PostTrainingSettings(weight_format="pot4", words_format="int8")


def encoder(name: str) -> TextEncoder:
    torch.manual_seed(0)
    model = TextEncoder(EncoderSettings.model_validate(COMMON | MODELS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def texts(seed: int, count: int) -> Sequences:
    """Word ids with a few frequent words, as texts have them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 17, count)
    return Sequences((50 * rng.random(int(lengths.sum())) ** 2).astype(np.uint32), lengths)


def error(model: TextEncoder, original: TextEncoder) -> float:
    held_out = texts(1, 60)
    expected = outputs(original, held_out)
    return float((outputs(model, held_out) - expected).square().sum() / (expected - expected.mean(0)).square().sum())


@pytest.mark.parametrize("name", MODELS)
def test_it_is_nearer_to_the_original_than_plain_rounding(name: str) -> None:
    original = encoder(name)
    model, plain = copy.deepcopy(original), copy.deepcopy(original)
    records = quantize_post_training(model, SETTINGS, texts(0, 200))
    plain.merge_token_types()
    formats = linear_formats(original, SETTINGS) | {"words": "int8", "positions": "int8"}
    attach_quantizers(plain, lambda name: formats[name.removesuffix(".weight")])
    assert error(model, original) < 0.7 * error(plain, original)
    assert [record["layer"] for record in sorted(records, key=lambda one: one["layer"])] == sorted(model.linears())
    ratios = [record["error"] / record["nearest_error"] for record in records]
    assert min(ratios) > 0 and max(ratios) < 1 and np.mean(ratios) < 0.8


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_on_the_grid_and_the_claim_holds(name: str) -> None:
    model = encoder(name)
    settings = PostTrainingSettings.model_validate(
        {"weight_format": "pot4", "formats": {"blocks.0": "int8", "blocks.0.attn": "int6"}}
    )
    claim = format_claim(model, settings)
    done: list[tuple[int, int]] = []
    quantize_post_training(model, settings, texts(0, 20), lambda *count: done.append(count))
    assert done == [(index + 1, len(model.linears())) for index in range(len(model.linears()))]
    formats = linear_formats(model, settings)
    assert set(formats.values()) == {"int8", "int6", "pot4"} or name == "classifier"
    for layer, linear in model.linears().items():
        levels, _ = levels_and_scale(linear, "weight")
        assert set(levels.unique().tolist()) <= set(WEIGHT_FORMATS[formats[layer]].grid.tolist())
    program = lower(model, {"provenance": {}})
    for subject in (model, program):
        assert [record["holds"] for record in assert_ledger([claim], subject, "export")] == [True]
    other = tuple(replace(t, format="int8") if t.format == "pot4" else t for t in program.tensors)
    with pytest.raises(FailureError, match="after 'export' the guarantee of 'quantize' is broken: matrices are int4"):
        assert_ledger([claim], replace(program, tensors=other), "export")
    wrong = {"formats": claim.values["formats"] | {"words": "int8"}}
    with pytest.raises(FailureError, match="is broken"):
        assert_ledger([replace(claim, values=wrong)], model, "distill")


def test_the_longest_name_that_fits_gives_the_format() -> None:
    settings = PostTrainingSettings.model_validate(
        {"formats": {"blocks.1": "int8", "blocks.1.mlp.fc1": "pot4", "blocks.0.attn.qkv": "int6"}}
    )
    formats = linear_formats(encoder("bert"), settings)
    assert formats["blocks.0.attn.qkv"] == "int6" and formats["blocks.0.attn.proj"] == "int4"
    assert formats["blocks.1.mlp.fc1"] == "pot4" and formats["blocks.1.mlp.fc2"] == "int8"


@pytest.mark.parametrize("name", ["blocks.2", "blocks.1.attn.q", "block", "words"])
def test_a_name_of_no_layer_is_refused(name: str) -> None:
    settings = PostTrainingSettings.model_validate({"formats": {name: "int8"}})
    with pytest.raises(
        UserError, match=rf"^quantize\.formats: '{name}' is no layer; the layers are blocks\.0\.attn\.qkv"
    ):
        linear_formats(encoder("bert"), settings)


def test_it_is_the_same_every_time_and_leaves_the_rest_alone() -> None:
    original = encoder("bert")
    first, second = copy.deepcopy(original), copy.deepcopy(original)
    for model in (first, second):
        quantize_post_training(model, SETTINGS, texts(0, 30))
    state = second.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())
    kept = "parametrizations.words.original"
    assert torch.equal(first.state_dict()[kept], original.words)
    assert F.cosine_similarity(outputs(first, texts(1, 20)), outputs(original, texts(1, 20))).mean() > 0.95
