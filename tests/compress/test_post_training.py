"""Post-training quantisation of all families: the claim on formats, and that it beats plain rounding."""

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import parametrize

from lilliput.compress.base import Model
from lilliput.compress.formats import attach_quantizers, linear_formats
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.post_training import format_claim, quantize_post_training, roughly_quantized
from lilliput.compress_config import ImagePostTrainingSettings, TextPostTrainingSettings
from lilliput.config import ModelSettings
from lilliput.data.text import Sequences
from lilliput.errors import FailureError, UserError
from lilliput.lower import lower
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.stack import WeightQuantizer, levels_and_scale
from lilliput.models.vit import ViT
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.train.distill import outputs
from lilliput.train.examples import Examples, Images

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
IMAGE_MODELS: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 4},
    "deit with two heads": {"patch_size": 4, "distillation": "head"},
    "hybrid": {"patch_size": 1, "pool": "mean", "positions": "sinusoidal", "stem": [{"channels": 8}, {"channels": 16}]},
}
SETTINGS = TextPostTrainingSettings(weight_format="pot4", words_format="int8")


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


def image_model(name: str) -> ViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_dim": 48}
    model = ViT(ModelSettings.model_validate_json(json.dumps(sizes | IMAGE_MODELS[name])), (8, 12, 3), 5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def images(seed: int, count: int, model: ViT) -> Images:
    """Pixels whose neighbours are alike, as photos have them."""
    small = np.random.default_rng(seed).integers(0, 200, (count, 4, 6, 3), np.uint8)
    noise = np.random.default_rng(seed + 1).integers(0, 50, (count, 8, 12, 3), np.uint8)
    return Images(small.repeat(2, axis=1).repeat(2, axis=2) + noise, len(model.positions))


def error(model: Model, original: Model, held_out: Examples) -> float:
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
    assert error(model, original, texts(1, 60)) < 0.7 * error(plain, original, texts(1, 60))
    assert [record["layer"] for record in sorted(records, key=lambda one: one["layer"])] == sorted(model.linears())
    ratios = [record["error"] / record["nearest_error"] for record in records]
    assert min(ratios) > 0 and max(ratios) < 1 and np.mean(ratios) < 0.8


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_so_it_is_with_image_models(name: str) -> None:
    original = image_model(name)
    model, plain = copy.deepcopy(original), copy.deepcopy(original)
    settings = ImagePostTrainingSettings(weight_format="pot4", formats={"patch_embed": "int8"})
    records = quantize_post_training(model, settings, images(0, 60, original))
    formats = {f"{layer}.weight": name for layer, name in linear_formats(original, settings).items()}
    attach_quantizers(plain, lambda name: formats.get(name, "int8"))
    held_out = images(2, 60, original)
    assert error(model, original, held_out) < 0.7 * error(plain, original, held_out)
    assert [record["layer"] for record in records] == list(model.linears())
    assert max(record["error"] / record["nearest_error"] for record in records) < 1
    assert formats["patch_embed.proj.weight"] == "int8" and formats["head.weight"] == "pot4"
    program = lower(model, {"labels": ["a", "b", "c", "d", "e"], "provenance": {}})
    for subject in (model, program):
        assert [one["holds"] for one in assert_ledger([format_claim(original, settings)], subject, "export")] == [True]


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_on_the_grid_and_the_claim_holds(name: str) -> None:
    model = encoder(name)
    settings = TextPostTrainingSettings.model_validate(
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


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("damping", [0.01, 1e-9])
def test_a_text_or_two_are_enough(count: int, damping: float) -> None:
    """The head sees one vector a text, so of one text it has no variance at all: then it is rounded to the nearest."""
    original = encoder("classifier")
    model = copy.deepcopy(original)
    settings = SETTINGS.model_copy(update={"damping": damping})
    records = {record["layer"]: record for record in quantize_post_training(model, settings, texts(0, count))}
    assert_ledger([format_claim(original, settings)], model, "quantize")
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    if count == 1:
        made, weight = WeightQuantizer("pot4", 3), original.linears()["head.out"].weight.detach()
        made.search(weight)
        assert torch.equal(model.linears()["head.out"].weight, made(weight))
        assert records["head.out"]["error"] == 0
        torch.testing.assert_close(outputs(model, texts(0, 1)), outputs(original, texts(0, 1)), atol=1e-3, rtol=1e-3)


def test_a_model_that_overflows_is_named() -> None:
    model = encoder("bert")
    with torch.no_grad():
        model.linears()["blocks.0.mlp.fc1"].weight.fill_(1e38)
    with pytest.raises(FailureError, match=r"^quantize: the inputs of blocks\.0\.mlp\.fc2 are not finite; the model"):
        quantize_post_training(model, SETTINGS, texts(0, 3))


@pytest.mark.parametrize("hidden", ["static", "dynamic"])
def test_the_program_is_known_before(hidden: str) -> None:
    """Without examples: its ops and the sizes of all tensors are those that it will have."""
    original = encoder("bert")
    settings = SETTINGS.model_copy(update={"hidden": hidden})
    model = copy.deepcopy(original)
    quantize_post_training(model, settings, texts(0, 3))
    known, made = (lower(one, {"provenance": {}}) for one in (roughly_quantized(original, settings), model))
    assert [op.kind for op in known.ops] == [op.kind for op in made.ops]
    told = [[(t.name, t.format, t.layout, t.values.shape) for t in one.tensors] for one in (known, made)]
    assert told[0] == told[1]
    assert original.token_types is not None and not parametrize.is_parametrized(original, "words")


def test_the_longest_name_that_fits_gives_the_format() -> None:
    settings = TextPostTrainingSettings.model_validate(
        {"formats": {"blocks.1": "int8", "blocks.1.mlp.fc1": "pot4", "blocks.0.attn.qkv": "int6"}}
    )
    formats = linear_formats(encoder("bert"), settings)
    assert formats["blocks.0.attn.qkv"] == "int6" and formats["blocks.0.attn.proj"] == "int4"
    assert formats["blocks.1.mlp.fc1"] == "pot4" and formats["blocks.1.mlp.fc2"] == "int8"


@pytest.mark.parametrize("name", ["blocks.2", "blocks.1.attn.q", "block", "words"])
def test_a_name_of_no_layer_is_refused(name: str) -> None:
    settings = TextPostTrainingSettings.model_validate({"formats": {name: "int8"}})
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
