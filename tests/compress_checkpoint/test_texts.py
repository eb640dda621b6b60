"""`lil compress` from a Hugging Face folder to a measured file: stages, resuming, and what is refused first."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lilliput import artifact
from lilliput.cli import main
from lilliput.compress.words import factorize_words
from lilliput.compress_checkpoint import compress, read_checkpoint, run
from lilliput.compress_checkpoint.texts import TextSubject
from lilliput.compress_config import TextCompressRecipe, TextDataSettings
from lilliput.config import load_recipe, parse_settings
from lilliput.data.text import Sequences, read_texts, split_texts
from lilliput.errors import DataError, FailureError, RecipeError, UserError
from lilliput.models.checkpoint import load_text_model
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.huggingface import load_pretrained, save_pretrained
from lilliput.runtime.opening import open_text_model
from lilliput.train.distill import outputs

WORDS = ["the", "an", "of", "and", "in", "to", "red", "green", "blue", "fast", "slow", "data", "test", "file", "python"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
LAYER = {"num_heads": 2, "head_dim": 8, "mlp_dim": 32}
COMMON: dict[str, Any] = {"vocabulary_size": len(VOCABULARY), "num_positions": 32, "embed_dim": 16, "token_types": 2}
SENTENCE = {"layers": (LAYER, LAYER), "pooling": "mean", "normalize": True}
CLASSIFIER = {"layers": (LAYER,), "pooling": "cls", "head": {"labels": ("good", "bad"), "hidden_dim": 16}}
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"test": 30, "validation": 20},
    "quantize": {"texts": 60, "weight_format": "pot4"},
    "distill": {"batch_size": 16, "epochs": 4, "lr": 1e-3, "texts": 96},
}
FACTORIZED: dict[str, Any] = {
    "stages": ["factorize", "quantize", "distill", "export", "evaluate"],
    "factorize": {"embedding_dim": 8},
}


def checkpoint(folder: Path, changes: dict[str, Any]) -> Path:
    """A small BERT as Hugging Face would save it."""
    torch.manual_seed(0)
    model = TextEncoder(EncoderSettings.model_validate(COMMON | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_pretrained(model, folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return folder


def texts_file(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice([*WORDS, "xyz", "Foo!"], rng.integers(1, 40)).tolist()) for _ in range(200)]
    path = folder / "texts.txt"
    path.write_text("\n".join(lines))
    return path


def recipe(data: Path, **changes: Any) -> TextCompressRecipe:
    return parse_settings({**SMALL, **changes}, "test", None, TextCompressRecipe).with_data(str(data))


def compressed(folder: Path, settings: TextCompressRecipe, out: Path) -> Path:
    return compress(read_checkpoint(folder), settings, out, quiet=True)


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("sentence"), SENTENCE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return texts_file(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(sentence: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(sentence, recipe(data), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def factorized(sentence: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(sentence, recipe(data, **FACTORIZED), tmp_path_factory.mktemp("runs"))


def results(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return read


def test_the_file_is_measured_from_texts_against_fp32(finished: Path, sentence: Path, data: Path) -> None:
    measured = results(finished)
    assert measured["texts"] == 30
    assert measured["file_bytes"] == (finished / "model.lil").stat().st_size
    assert measured["fp32_bytes"] == 4 * (load_pretrained(sentence).num_parameters())
    assert 0.9 < measured["cosine"]["min"] <= measured["cosine"]["p5"] <= measured["cosine"]["mean"] < 1
    assert measured["cosine_to_simulation"]["min"] > 0.999
    held_out = split_texts(read_texts(data), TextDataSettings(test=30, validation=20)).test
    with open_text_model(finished / "model.lil") as session:
        vectors = session.embed(held_out)
        ids = [torch.from_numpy(one.astype(np.int64))[None] for one in session.tokenize(held_out)]
    with torch.no_grad():
        expected = torch.cat([load_pretrained(sentence)(one) for one in ids]).numpy()
    assert (vectors * expected).sum(1).mean() == pytest.approx(measured["cosine"]["mean"], abs=1e-5)


def test_the_file_holds_formats_tokenizer_and_provenance(finished: Path) -> None:
    program = artifact.read(finished / "model.lil")
    formats = {tensor.name: tensor.format for tensor in program.tensors if tensor.is_codes}
    assert formats.pop("words") == "int4" and formats.pop("positions") == "int8"
    assert set(formats.values()) == {"pot4"} and len(formats) == 8
    assert [token.decode() for token in program.vocabulary.tokens] == VOCABULARY
    assert program.metadata["provenance"]["recipe"] == "small"
    assert len(program.golden_inputs) == 1


def test_distillation_brings_it_nearer_and_leaves_words_alone(finished: Path) -> None:
    before, after = (load_text_model(finished / name) for name in ("01-quantize", "02-distill"))
    records = [
        json.loads((finished / name / "record.json").read_text())["record"] for name in ("01-quantize", "02-distill")
    ]
    assert records[1]["cosine"]["mean"] > records[0]["cosine"]["mean"]
    assert torch.equal(before.words, after.words) and torch.equal(before.positions, after.positions)
    assert not torch.equal(before.linears()["blocks.0.mlp.fc1"].weight, after.linears()["blocks.0.mlp.fc1"].weight)


def test_words_are_factorised_before_they_are_quantized_and_their_product_is_distilled(
    factorized: Path, finished: Path, sentence: Path, data: Path
) -> None:
    codes = {tensor.name: tensor for tensor in artifact.read(factorized / "model.lil").tensors if tensor.is_codes}
    assert (codes["words"].rows, codes["words"].cols, codes["words"].format) == (len(VOCABULARY), 8, "int4")
    product = codes["projection.weight"]
    assert (product.rows, product.cols, product.format) == (16, 8, "pot4")
    measured = results(factorized)
    assert [one["stage"] for one in measured["ledger"]] == ["factorize", "quantize"]
    assert 0.8 < measured["cosine"]["mean"] < results(finished)["cosine"]["mean"]
    assert measured["cosine_to_simulation"]["min"] > 0.999
    before, after = (load_text_model(factorized / name) for name in ("02-quantize", "03-distill"))
    assert torch.equal(before.words, after.words)
    assert not torch.equal(before.linears()["projection"].weight, after.linears()["projection"].weight)
    # And it is the best one for the texts to learn from.
    texts = TextSubject(read_checkpoint(sentence), recipe(data))
    ids = np.concatenate([texts.tokenizer.encode(text, 32) for text in texts.parts.train])
    counts = torch.from_numpy(np.bincount(ids, minlength=len(VOCABULARY)))
    original, model = load_pretrained(sentence), load_text_model(factorized / "01-factorize")
    assert isinstance(original, TextEncoder)
    expected = factorize_words(original, counts, 8)[0]
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_run_with_factorised_words_resumes(
    factorized: Path, sentence: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where in ("_factorize", "_quantize", "_distill"):
        with monkeypatch.context() as patch:
            patch.setattr(run, where, interrupt)
            with pytest.raises(KeyboardInterrupt):
                compressed(sentence, recipe(data, **FACTORIZED), tmp_path)
    again = compressed(sentence, recipe(data, **FACTORIZED), tmp_path)
    assert (again / "model.lil").read_bytes() == (factorized / "model.lil").read_bytes()
    shutil.copytree(factorized, tmp_path / "more" / "small")
    fewer = FACTORIZED | {"factorize": {"embedding_dim": 4}, "stages": ["factorize", "quantize", "export"]}
    other = compressed(sentence, recipe(data, **fewer), tmp_path / "more")
    assert {t.name: t.cols for t in artifact.read(other / "model.lil").tensors}["words"] == 4


def test_a_finished_run_is_not_done_again_and_changes_are(
    finished: Path, sentence: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, done = (finished / "model.lil").read_bytes(), []
    work = run.Run.work

    def note(state: run.Run, index: int, checkpoint: Path) -> dict[str, Any]:
        done.append(state.stages[index])
        return work(state, index, checkpoint)

    monkeypatch.setattr(run.Run, "work", note)
    moved = shutil.copy(data, finished.parent / "moved.txt")
    assert compressed(sentence, recipe(Path(moved)), finished.parent) == finished
    assert done == []
    short = recipe(data, stages=["quantize", "export", "evaluate"])
    compressed(sentence, short, finished.parent / "short")
    assert done == ["quantize", "export", "evaluate"]
    assert (finished / "model.lil").read_bytes() == before
    done.clear()
    golden = recipe(data, export={"golden": 2})
    copied = shutil.copytree(finished, finished.parent / "copy" / "small")
    compressed(sentence, golden, copied.parent)
    assert done == ["export", "evaluate"]


def test_what_was_measured_on_another_file_is_gone(finished: Path, sentence: Path, data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "small")
    changed = {"stages": ["quantize", "export"], "quantize": {"texts": 20, "weight_format": "int8"}}
    compressed(sentence, recipe(data, **changed), tmp_path)
    assert (folder / "model.lil").stat().st_size > (finished / "model.lil").stat().st_size
    assert not (folder / "results.json").exists()
    compressed(sentence, recipe(data, **changed | {"stages": ["quantize", "export", "evaluate"]}), tmp_path)
    assert results(folder)["file_bytes"] == (folder / "model.lil").stat().st_size


def test_the_file_tells_the_checkpoints_present_name(sentence: Path, data: Path, tmp_path: Path) -> None:
    changes = {"stages": ["quantize", "export"], "quantize": {"texts": 20}}
    for name in ("first", "second"):
        checkpoint_folder = shutil.copytree(sentence, tmp_path / name)
        folder = compressed(checkpoint_folder, recipe(data, **changes), tmp_path)
        provenance = artifact.read(folder / "model.lil").metadata["provenance"]
        assert provenance["checkpoint"] == name and provenance["stages"] == ["quantize", "export"]
        if name == "first":
            before = (folder / "01-quantize" / "record.json").read_bytes()
    assert (folder / "01-quantize" / "record.json").read_bytes() == before


def test_later_stages_are_held_to_what_earlier_ones_claimed(
    finished: Path, sentence: Path, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "small")
    ledger = json.loads((folder / "02-distill" / "record.json").read_text())["record"]["ledger"]
    assert [one["stage"] for one in ledger] == ["quantize"]
    (folder / "02-distill" / "record.json").unlink()
    path = folder / "01-quantize" / "record.json"
    saved = json.loads(path.read_text())
    saved["record"]["claims"][0]["values"]["formats"]["words"] = "int8"  # as if distillation had changed the format
    path.write_text(json.dumps(saved))
    with pytest.raises(FailureError, match="after 'distill' the guarantee of 'quantize' is broken"):
        compressed(sentence, recipe(data), tmp_path)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["quantize_post_training", "fit", "save_model", "_export", "_evaluate"])
def test_ctrl_c_in_any_stage_loses_nothing(
    finished: Path, sentence: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            compressed(sentence, recipe(data), tmp_path)
    assert not list(tmp_path.rglob(".*.part"))
    again = compressed(sentence, recipe(data), tmp_path)
    assert (again / "model.lil").read_bytes() == (finished / "model.lil").read_bytes()


def test_a_classifiers_predictions_are_compared(data: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "classifier", CLASSIFIER)
    short = recipe(data, stages=["quantize", "export", "evaluate"], quantize={"words_format": "int8"})
    finished = compressed(folder, short, tmp_path)
    measured = results(finished)
    with open_text_model(finished / "model.lil") as session:
        assert session.labels == ("good", "bad")
        held_out = split_texts(read_texts(data), short.data).test
        chosen = session.predict(held_out)[0]
        ids = session.tokenize(held_out)
    original = load_pretrained(folder)
    assert isinstance(original, TextEncoder)
    with torch.no_grad():
        logits = torch.cat([original(torch.from_numpy(one.astype(np.int64))[None]) for one in ids])
    assert measured["differing_predictions"] == int((logits.argmax(1).numpy() != chosen).sum())


def test_the_command_prints_a_table_and_the_folder(
    sentence: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.toml").write_text('name = "from-recipe"\nstages = ["quantize", "export", "evaluate"]')
    arguments = [str(sentence), "--data", str(data), "--recipe", str(tmp_path / "r.toml"), "--out", str(tmp_path)]
    assert main(["compress", *arguments, "--set", "data.test=20"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "from-recipe")
    measured = results(tmp_path / "from-recipe")
    for shown in (f"{measured['file_bytes']:,}", f"{measured['cosine']['min']:.4f}", "share of fp32's bytes"):
        assert shown in printed.err
    assert main(["compress", *arguments, "--quiet", "--set", "data.test=20"]) == 0
    assert capsys.readouterr().err == ""


def broken_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def broken_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken_nan, r"has NaN or infinite values; weights must be finite"),
        (lambda f: (f / "vocab.txt").unlink(), r"tokenizer"),
        (lambda f: (f / "vocab.txt").write_text("\n".join([*VOCABULARY, "extra"])), r"73 tokens, .* vectors for 72"),
        (
            lambda f: (f / "modules.json").unlink(),
            r"gives a vector for each token and none for a text; .* modules\.json",
        ),
        (
            lambda f: broken_config(f, model_type="gpt9", architectures=["Gpt9"]),
            r"model_type is 'gpt9'; architectures that",
        ),
        (lambda f: (f / "model.safetensors").unlink(), r"no weights; it must have model\.safetensors"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_first(
    sentence: Path, data: Path, tmp_path: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(sentence, tmp_path / "damaged")
    damage(folder)
    assert main(["compress", str(folder), "--data", str(data), "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(UserError, match=message):
        compressed(folder, recipe(data), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_other_mistakes_are_one_line_before_anything_is_done(
    sentence: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    cases = [
        ([], "lil compress: no texts; give --data FILE with one text a line"),
        (["--data", str(tmp_path / "empty.txt")], "has no text; write one text a line"),
        (
            ["--data", str(data), "--set", "quantize.formats={x = 'int8'}"],
            "'x' is no layer; the layers are blocks.0.attn",
        ),
        (
            ["--data", str(data), "--set", "quantize.weight_format=int5"],
            "quantize.weight_format: Input should be 'int8'",
        ),
        (
            ["--data", str(data), "--set", "stages=['factorize']", "--set", "factorize.embedding_dim=14"],
            "factorize.embedding_dim=14: no smaller than the table of 72 words of 16 numbers; at most 13 helps",
        ),
        (["--data", str(data), "--set", "distil.lr=1"], "unknown field 'distil'; allowed: "),
        (["--data", str(data), "--set", "stages=['export']"], "stages: 'export' needs 'quantize' before it"),
    ]
    for arguments, message in cases:
        assert main(["compress", str(sentence), *arguments, "--out", str(tmp_path / "runs")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert main(["compress", str(tmp_path / "nowhere"), "--data", str(data)]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_products_that_the_machine_lacks_are_refused_first(
    sentence: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lilliput.train.loop._has_bf16_products", lambda: False)
    with pytest.raises(UserError, match="precision=bf16: this machine has no such products"):
        compressed(sentence, recipe(data, distill={"precision": "bf16"}), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_a_program_is_refused_first(data: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "wide", SENTENCE | {"layers": (LAYER | {"mlp_dim": 65600},)})
    with pytest.raises(UserError, match=r"codes' cols \(K\) is 65600; must be at most 65536"):
        compressed(folder, recipe(data), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_text_without_tokens_is_refused_first(data: Path, tmp_path: Path, part: str) -> None:
    """There are such texts where the tokenizer adds none of its own: here one of a character that is dropped."""
    folder = checkpoint(tmp_path / "bare", SENTENCE)
    (folder / "vocab.txt").unlink()
    words = {word: index for index, word in enumerate(VOCABULARY)}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": words}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    content: dict[str, Any] = {
        "added_tokens": [],
        "post_processor": None,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
    }
    content |= {"normalizer": normalizer | {"strip_accents": None}, "model": model | {"max_input_chars_per_word": 100}}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    texts = tmp_path / "texts.txt"
    texts.write_text(data.read_text() + "\n\u200b")
    settings = recipe(texts)
    seeds = (settings.data.model_copy(update={"split_seed": seed}) for seed in range(100))
    chosen = next(one for one in seeds if "\u200b" in getattr(split_texts(read_texts(texts), one), part))
    with pytest.raises(DataError, match=r"^data: '\\u200b' has no token; leave such texts out$"):
        compressed(folder, settings.model_copy(update={"data": chosen}), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["distill", "quantize"], "'distill' needs 'quantize' before it"),
        (["quantize", "factorize"], "'factorize' cannot follow 'quantize'"),
        (["factorize", "distill"], "'distill' needs 'quantize' before it"),
        (["quantize", "quantize"], "'quantize' cannot follow 'quantize'"),
        (["quantize", "export", "distill"], "'distill' cannot follow 'export'"),
        (["quantize", "evaluate"], "'evaluate' needs 'export' before it"),
        ([], "stages: "),
    ],
)
def test_impossible_orders_are_refused(stages: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_settings({"stages": stages}, "test", None, TextCompressRecipe)


def test_the_projects_recipes_are_valid() -> None:
    folder = Path(__file__).parent.parent.parent / "recipes"
    overrides = ["distill.texts=100", "quantize.formats={'blocks.0.attn' = 'int8'}"]
    loaded = load_recipe(folder / "minilm-pot4.toml", overrides, TextCompressRecipe)
    assert (loaded.name, loaded.quantize.weight_format, loaded.distill.texts) == ("minilm-pot4", "pot4", 100)
    assert loaded.quantize.formats == {"blocks.0.attn": "int8"}
    loaded = load_recipe(folder / "minilm-small-words.toml", [], TextCompressRecipe)
    assert (loaded.name, loaded.stages[0], loaded.factorize.embedding_dim) == ("minilm-small-words", "factorize", 192)


def test_simulation_and_file_agree(finished: Path, data: Path) -> None:
    """Beyond the mean: what the torch model computes is what the runtime computes, within float rounding."""
    model = load_text_model(finished / "02-distill").eval()
    with open_text_model(finished / "model.lil") as session:
        ids = session.tokenize(read_texts(data)[:40])
        measured = session.run(ids)
    given = Sequences(np.concatenate(ids), np.array([len(one) for one in ids], np.int64))
    difference = np.abs(outputs(model, given).numpy() - measured)
    assert np.median(difference) < 1e-5
    assert difference.max() < 0.02
