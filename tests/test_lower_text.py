"""Lowering of text encoders: every family's program computes what the simulated model computes, in every runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import lilliput
from lilliput import artifact
from lilliput.compress.quantize import attach_quantizers
from lilliput.lower import LoweringError, lower
from lilliput.lower.blocks import lower_block
from lilliput.lower.emit import Emitter
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.stack import WeightQuantizer, base_of, layer_of
from lilliput.program import reference
from lilliput.program.builder import with_golden
from lilliput.program.cost import macs
from lilliput.program.program import Program, Vocabulary
from lilliput.runtime import isas

VOCABULARY = 41
LAYER = {"num_heads": 2, "head_dim": 9, "mlp_dim": 21}
BOTTLENECK = {"num_heads": 3, "head_dim": 4, "mlp_dim": 18, "bottleneck_dim": 12, "stacked_dims": (10, 19)}
COMMON: dict[str, Any] = {"vocabulary_size": VOCABULARY, "num_positions": 24, "embed_dim": 22}
HEAD = {"labels": ("a", "b", "c"), "hidden_dim": 15}
MODELS: dict[str, dict[str, Any]] = {
    "bert": {"layers": (LAYER, LAYER | {"num_heads": 1, "mlp_dim": 30}), "token_types": 2},
    "pre-norm": {"layers": (LAYER, LAYER), "norm_first": True, "activation": "gelu_tanh"},
    "roberta": {"family": "roberta", "layers": (LAYER,), "token_types": 1, "max_tokens": 20, "norm_eps": 1e-5},
    "distilbert": {"family": "distilbert", "layers": (LAYER,), "activation": "relu"},
    "albert": {
        "family": "albert",
        "layers": (LAYER,),
        "order": (0, 0, 0),
        "embedding_dim": 10,
        "projection": "sum",
        "activation": "gelu_tanh",
    },
    "two groups": {"family": "albert", "layers": (LAYER, LAYER | {"mlp_dim": 9}), "order": (0, 1, 0)},
    "mobilebert": {
        "family": "mobilebert",
        "layers": (BOTTLENECK, BOTTLENECK | {"stacked_dims": ()}),
        "embedding_dim": 7,
        "projection": "words",
        "trigram": True,
        "embedding_norm": "no_norm",
        "activation": "relu",
    },
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "sentence": {"pooling": "mean", "normalize": True},
    "mean": {"pooling": "mean"},
    "cls": {"pooling": "cls"},
    "labels": {"pooling": "cls", "head": HEAD},
    "relu head of the mean": {"pooling": "mean", "head": HEAD | {"activation": "relu"}},
    "one layer head": {"pooling": "cls", "head": {"labels": ("a", "b")}},
}
CASES = [(name, output) for name in MODELS for output in ("sentence", "labels")]
CASES += [("bert", output) for output in OUTPUTS if output not in ("sentence", "labels")]
METADATA: dict[str, Any] = {"provenance": {}}


def encoder(name: str, output: str) -> TextEncoder:
    torch.manual_seed(0)
    model = TextEncoder(EncoderSettings.model_validate(COMMON | MODELS[name] | OUTPUTS[output])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def quantized(name: str, output: str, weight_format: str = "pot4") -> TextEncoder:
    model = encoder(name, output)
    model.merge_token_types()
    attach_quantizers(model, lambda name: "int4" if name in ("words", "positions") else weight_format)
    return model


def sequences(model: TextEncoder, count: int = 24) -> list[NDArray[np.uint32]]:
    rng = np.random.default_rng(0)
    longest = model.settings.max_tokens or model.settings.num_positions
    lengths = [1, 2, longest, *rng.integers(1, longest + 1, count - 3).tolist()]
    return [rng.integers(0, VOCABULARY, length).astype(np.uint32) for length in lengths]


@torch.no_grad()
def simulate(model: TextEncoder, texts: list[NDArray[np.uint32]]) -> NDArray[np.float32]:
    rows = [model(torch.from_numpy(ids.astype(np.int64))[None])[0] for ids in texts]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize(("name", "output"), CASES)
def test_program_equals_the_simulated_model(name: str, output: str) -> None:
    """Products are exact on both sides; what is left is float rounding, and a level that it tips over now and then."""
    model = quantized(name, output)
    texts = sequences(model)
    simulated, executed = simulate(model, texts), reference.run(lower(model, METADATA), texts)
    spread, difference = simulated.std(), np.abs(simulated - executed)
    assert np.median(difference) <= 1e-4 * spread
    assert difference.max() <= 0.08 * spread
    assert simulated.std(axis=0).mean() > 0.01  # a constant model would pass anything


@pytest.mark.parametrize(("name", "output"), CASES)
def test_the_file_opens_and_the_runtime_gives_the_references_bits(name: str, output: str, tmp_path: Path) -> None:
    model = quantized(name, output)
    texts = sequences(model)
    program = with_golden(lower(model, METADATA), texts[:2])
    artifact.write(program, tmp_path / "model.lil")
    expected = reference.run(program, texts)
    for isa in isas():
        with lilliput.open(tmp_path / "model.lil", isa=isa) as session:
            session.verify_golden()
            assert np.array_equal(session.run(texts).view(np.uint32), expected.view(np.uint32)), isa
    assert program.max_tokens == (model.settings.max_tokens or 24)
    assert program.metadata["task"] == ("text-classification" if model.head else "text-embedding")
    assert tuple(program.metadata["labels"]) == model.labels


@pytest.mark.parametrize("weight_format", ["int8", "int6", "int4"])
def test_every_weight_format_lowers(weight_format: str) -> None:
    model = quantized("bert", "sentence", weight_format)
    texts = sequences(model)
    program = lower(model, METADATA)
    assert formats(program, "weight") == {weight_format}
    assert formats(program, "embedding") == {"int4"}
    assert np.abs(simulate(model, texts) - reference.run(program, texts)).max() <= 0.02


def formats(program: Program, role: str) -> set[str]:
    return {tensor.format for tensor in program.tensors if tensor.role == role}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_all_in_the_program_once(name: str) -> None:
    """Also those of blocks that are run at several depths; of the positions, those that `max_tokens` leaves."""
    model = quantized(name, "labels")
    program = lower(model, METADATA)
    learned = [tensor for tensor in program.tensors if tensor.role in ("weight", "bias", "norm", "embedding")]
    unused = (24 - program.max_tokens) * model.settings.position_dim
    assert sum(tensor.values.size for tensor in learned) == model.num_parameters() - unused
    assert len({tensor.name for tensor in program.tensors}) == len(program.tensors)
    attentions = [op for op in program.ops if op.kind == "table_attention"]
    assert len(attentions) == len(model.settings.resolved_order())


def test_shared_blocks_are_used_by_several_ops() -> None:
    program = lower(quantized("albert", "sentence"), METADATA)
    users: dict[str, int] = {}
    for op in program.ops:
        for tensor in op.tensors:
            users[program.tensors[tensor].name] = users.get(program.tensors[tensor].name, 0) + 1
    assert users["blocks.0.attn.qkv.weight"] == users["blocks.0.norm1.bias"] == 3
    assert users["projection.weight"] == 1


def test_what_several_layers_read_is_quantised_once() -> None:
    program = lower(quantized("mobilebert", "sentence"), METADATA)
    quantizes = [op.inputs for op in program.ops if op.kind == "quantize"]
    assert len(set(quantizes)) == len(quantizes)


@pytest.mark.parametrize("name", ["bert", "pre-norm", "albert", "mobilebert"])
def test_the_first_token_alone_gives_the_bits_of_all_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(name, "cls")
    pruned = lower(model, METADATA)

    def whole(emit: Emitter, name: str, block: nn.Module, x: int, first_row_only: bool = False) -> int:
        y = lower_block(emit, name, block, x)
        return emit.row(y, 0) if first_row_only else y

    monkeypatch.setattr("lilliput.lower.texts.lower_block", whole)
    full = lower(model, METADATA)
    texts = sequences(model)
    assert np.array_equal(reference.run(pruned, texts).view(np.uint32), reference.run(full, texts).view(np.uint32))
    queries = [[op.attributes["num_queries"] for op in p.ops if op.kind == "table_attention"] for p in (pruned, full)]
    depth = len(model.settings.resolved_order())
    assert queries == [[0] * (depth - 1) + [1], [0] * depth]
    assert macs(pruned) < macs(full)


def test_levels_in_the_program_are_the_models_levels() -> None:
    model = quantized("roberta", "sentence")
    tensors = {tensor.name: tensor.values for tensor in lower(model, METADATA).tensors}
    linear = model.linears()["blocks.0.mlp.fc1"]
    for name, value in (("blocks.0.mlp.fc1.weight", linear.weight), ("words", model.words)):
        rebuilt = tensors[name] * tensors[f"{name}.scale"].reshape(-1, 1)
        assert np.array_equal(rebuilt.astype(np.float32), value.detach().numpy())
    rebuilt = tensors["positions"] * tensors["positions.scale"].reshape(-1, 1)
    assert np.array_equal(rebuilt.astype(np.float32), model.positions[:20].detach().numpy())


def test_tokenizer_and_vocabulary_travel_with_the_file() -> None:
    vocabulary = Vocabulary(tuple(f"t{index}".encode() for index in range(VOCABULARY)))
    program = lower(quantized("bert", "sentence"), METADATA | {"tokenizer": {"kind": "wordpiece"}}, vocabulary)
    assert program.vocabulary.tokens == vocabulary.tokens
    assert program.metadata["tokenizer"] == {"kind": "wordpiece"}


def test_what_cannot_be_lowered_is_refused() -> None:
    tokens = quantized("bert", "sentence")
    tokens.settings = tokens.settings.model_copy(update={"pooling": None, "normalize": False})
    with pytest.raises(LoweringError, match=r"^cannot lower: the model has no pooling, so .* use 'cls' or 'mean'$"):
        lower(tokens, METADATA)
    with pytest.raises(LoweringError, match=r"^cannot lower: token types are not part of the positions"):
        lower(encoder("bert", "sentence"), METADATA)
    with pytest.raises(LoweringError, match=r"^cannot lower: .*weight is not quantised"):
        lower(encoder("pre-norm", "sentence"), METADATA)
    broken = quantized("bert", "sentence")
    with torch.no_grad():
        base_of(broken, "words")[3, 2] = float("nan")
    with pytest.raises(LoweringError, match=r"words.*has NaN or infinite values"):
        lower(broken, METADATA)
    words = layer_of(quantized("bert", "sentence"), "words", WeightQuantizer)
    assert words is not None
    assert words.format_name == "int4"
