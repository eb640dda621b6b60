"""Factorised tables of words: the optimum and its error, models made from them, their files, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lilliput
from lilliput import artifact
from lilliput.compress.formats import attach_quantizers
from lilliput.compress.ledger import assert_ledger
from lilliput.compress.words import WordFactors, factorize_table, factorize_words, with_factors, words_claim
from lilliput.compress_config import TextCompressRecipe
from lilliput.config import parse_settings
from lilliput.errors import FailureError, RecipeError
from lilliput.lower import lower
from lilliput.models.checkpoint import CheckpointError, load_text_model, save_model
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.huggingface import save_pretrained
from lilliput.models.stack import WeightQuantizer
from lilliput.program import reference
from lilliput.program.builder import with_golden
from lilliput.program.program import Program
from lilliput.report.inspect import inspect_file
from lilliput.runtime import isas

VOCABULARY, DIM = 60, 16
LAYER = {"num_heads": 2, "head_dim": 8, "mlp_dim": 32}
BERT: dict[str, Any] = {"vocabulary_size": VOCABULARY, "num_positions": 24, "embed_dim": DIM, "token_types": 2}
BERT |= {"layers": (LAYER, LAYER), "pooling": "mean", "normalize": True}
COUNTS = torch.from_numpy(np.random.default_rng(1).poisson(np.geomspace(300, 0.1, VOCABULARY)))


def random_table(rows: int = VOCABULARY) -> Tensor:
    """float64 [rows, 16], with a mean, and singular values from large to small."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -1, DIM, dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64))[0]
    table: Tensor = torch.randn(rows, DIM, generator=generator, dtype=torch.float64) * spread @ turned + 0.3
    return table


def encoder(**changes: Any) -> TextEncoder:
    torch.manual_seed(0)
    model = TextEncoder(EncoderSettings.model_validate(BERT | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def sequences() -> list[Any]:
    rng = np.random.default_rng(0)
    lengths = [1, 2, 24, *rng.integers(1, 25, 21).tolist()]
    return [rng.integers(0, VOCABULARY, length).astype(np.uint32) for length in lengths]


@torch.no_grad()
def simulate(model: TextEncoder) -> Any:
    return torch.stack([model(torch.from_numpy(ids.astype(np.int64))[None])[0] for ids in sequences()]).numpy()


def error(table: Tensor, counts: Tensor, factors: WordFactors) -> float:
    """The objective, as the module's docstring states it."""
    difference = table - (factors.words @ factors.projection + factors.bias)
    return float(((counts + 1.0) * difference.square().sum(dim=1)).sum())


@pytest.mark.parametrize("embedding_dim", [1, 7, 15, DIM])
def test_the_squared_error_is_the_sum_of_the_squared_singular_values_left_out(embedding_dim: int) -> None:
    table, frequencies = random_table(), COUNTS.double() + 1.0
    centred = table - (frequencies[:, None] * table).sum(dim=0) / frequencies.sum()
    squares = torch.linalg.svdvals(frequencies.sqrt()[:, None] * centred).square()
    factors = factorize_table(table, COUNTS, embedding_dim)
    assert factors.words.shape == (VOCABULARY, embedding_dim) and factors.projection.shape == (embedding_dim, DIM)
    total = float(squares.sum())
    assert error(table, COUNTS, factors) == pytest.approx(float(squares[embedding_dim:].sum()), rel=1e-8, abs=1e-8)
    assert factors.kept == pytest.approx(float(squares[:embedding_dim].sum()) / total, rel=1e-8)


def test_counts_decide_and_words_that_were_never_seen_count() -> None:
    table = random_table()
    weighted, alike = (factorize_table(table, counts, 6) for counts in (COUNTS, torch.zeros(VOCABULARY)))
    assert error(table, COUNTS, weighted) < 0.8 * error(table, COUNTS, alike)
    lines = torch.zeros(9, 4, dtype=torch.float64)  # eight words along one direction, and one beside them
    lines[:8, 0] = torch.arange(8)
    lines[8, 2] = 1.0
    counts = torch.tensor([50] * 8 + [0])
    assert error(lines, counts, factorize_table(lines, counts, 2)) < 1e-20


def test_the_product_is_orthonormal_and_codes_of_the_words_are_nearer_for_being_turned() -> None:
    embedding_dim, table = 12, random_table(400)
    factors = factorize_table(table, torch.zeros(400), embedding_dim)
    assert (factors.projection @ factors.projection.T - torch.eye(embedding_dim)).abs().max() < 1e-12
    along = torch.linalg.svd(factors.words, full_matrices=False)[2].T  # the turn back to the singular vectors
    errors = []
    for words in (factors.words, factors.words @ along):
        quantizer = WeightQuantizer("int4", len(words))
        quantizer.search(words.float())
        errors.append(float((quantizer(words.float()) - words).square().sum()))
    assert errors[0] < 0.8 * errors[1]


def test_as_many_numbers_as_before_give_the_model_back() -> None:
    model = encoder()
    expected = simulate(model)
    made = with_factors(model, factorize_table(model.words, COUNTS, DIM))
    assert np.abs(simulate(made) - expected).max() < 1e-5
    assert made.projection is not None and model.projection is None
    assert np.array_equal(simulate(model), expected)  # and it is not changed


def test_a_table_of_low_rank_gives_the_model_back_and_it_reloads(tmp_path: Path) -> None:
    model = encoder()
    with torch.no_grad():
        model.words.copy_(torch.randn(VOCABULARY, 5) @ torch.randn(5, DIM) * 0.2 + 0.1)
    made, factors = factorize_words(model, COUNTS, 5)
    assert factors.kept == pytest.approx(1.0)
    assert np.abs(simulate(made) - simulate(model)).max() < 1e-5
    assert (made.settings.embedding_dim, made.settings.projection) == (5, "words")
    assert made.num_parameters() == model.num_parameters() - VOCABULARY * (DIM - 5) + DIM * 5 + DIM
    save_model(made, tmp_path)
    assert np.array_equal(simulate(load_text_model(tmp_path).eval()), simulate(made))


def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path) -> None:
    model = encoder()
    made = factorize_words(model, COUNTS, 8)[0]
    with pytest.raises(
        RecipeError, match=r"^factorize: the model's words are factorised already \(embedding_dim=8\); "
    ):
        factorize_words(made, COUNTS, 4)
    albert = encoder(family="albert", embedding_dim=8, projection="sum")
    with pytest.raises(RecipeError, match="are factorised already"):
        factorize_words(albert, COUNTS, 4)
    assert VOCABULARY * 12 + 12 * DIM < VOCABULARY * DIM < VOCABULARY * 13 + 13 * DIM
    factorize_words(model, COUNTS, 12)
    for too_many in (13, DIM, 1000):
        message = rf"^factorize.embedding_dim={too_many}: no smaller .* 60 words of 16 numbers; at most 12 helps$"
        with pytest.raises(RecipeError, match=message):
            factorize_words(model, COUNTS, too_many)
    with pytest.raises(RecipeError, match=r"factorize.embedding_dim: .* greater than or equal to 1"):
        parse_settings({"factorize": {"embedding_dim": 0}}, "test", None, TextCompressRecipe)
    with pytest.raises(CheckpointError, match="it would lose embedding_dim, projection"):
        save_pretrained(made, tmp_path)  # Hugging Face's BERT has no such product


def quantized(model: TextEncoder, weight_format: str) -> TextEncoder:
    model.merge_token_types()
    attach_quantizers(model, lambda name: "int4" if name in ("words", "positions") else weight_format)
    return model


@pytest.mark.parametrize("weight_format", ["int4", "pot4"])
def test_the_program_equals_the_simulated_model_and_the_runtime_the_reference(
    weight_format: str, tmp_path: Path
) -> None:
    """The bounds are those of tests/test_lower_text.py."""
    model = quantized(factorize_words(encoder(), COUNTS, 8)[0], weight_format)
    program = with_golden(lower(model, {"provenance": {}}), sequences()[:2])
    simulated, executed = simulate(model), reference.run(program, sequences())
    spread, difference = simulated.std(), np.abs(simulated - executed)
    assert np.median(difference) <= 1e-4 * spread
    assert difference.max() <= 0.08 * spread
    artifact.write(program, tmp_path / "model.lil")
    for isa in isas():
        with lilliput.open(tmp_path / "model.lil", isa=isa) as session:
            session.verify_golden()
            assert np.array_equal(session.run(sequences()).view(np.uint32), executed.view(np.uint32)), isa


def test_the_file_shrinks_by_the_codes_and_inspect_shows_it(tmp_path: Path) -> None:
    reports = []
    for name, model in (("whole", encoder()), ("factorised", factorize_words(encoder(), COUNTS, 8)[0])):
        artifact.write(lower(quantized(model, "int4"), {"provenance": {}}), tmp_path / f"{name}.lil")
        reports.append(inspect_file(tmp_path / f"{name}.lil"))
    whole, factorised = ({tensor["name"]: tensor for tensor in report["tensors"]} for report in reports)
    assert whole["words"]["bytes"] == VOCABULARY * DIM // 2 and factorised["words"]["bytes"] == VOCABULARY * 8 // 2
    assert (factorised["projection.weight"]["rows"], factorised["projection.weight"]["cols"]) == (DIM, 8)
    product = sum(tensor["bytes"] for name, tensor in factorised.items() if name.startswith("projection"))
    sizes = [sum(report["bytes"][part] for part in ("codes", "scales", "vectors")) for report in reports]
    assert sizes[1] == sizes[0] - VOCABULARY * 8 // 2 + product
    assert [layer["layer"] for layer in reports[1]["layers"]][:2] == ["words", "projection"]


def test_the_claim_holds_in_model_and_file_and_is_seen_when_broken() -> None:
    def program(model: TextEncoder) -> Program:
        return lower(quantized(model, "int4"), {"provenance": {}})

    whole, made, other = encoder(), *(factorize_words(encoder(), COUNTS, size)[0] for size in (8, 7))
    claim = words_claim(made)
    for subject in (made, program(made)):
        assert [one["holds"] for one in assert_ledger([claim], subject, "export")] == [True]
    for wrong in (whole, program(whole), other, program(other)):
        with pytest.raises(FailureError, match="after 'distill' the guarantee of 'factorize' is broken: 60 words are"):
            assert_ledger([claim], wrong, "distill")
