"""examples/classify on a tiny encoder: fine-tuning, the folder that it leaves, the file, and what is refused."""

import importlib.util
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers

from lilliput.cli import main
from lilliput.compress_config import TextCompressRecipe
from lilliput.config import load_recipe
from lilliput.errors import DataError, UserError
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.huggingface import load_pretrained, save_pretrained
from lilliput.report.text import percent
from lilliput.runtime.opening import open_text_model

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "classify"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOPICS = {"games": ["chess", "puzzle", "arcade"], "net": ["router", "socket", "proxy"], "x11": ["window", "screen"]}
COMMON = ["the", "a", "of", "for", "tool", "library"]
VOCABULARY = [*SPECIAL, *COMMON, *(word for words in TOPICS.values() for word in words)]
MAX_TOKENS = 12

Command = Callable[..., int]


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_classify", FOLDER / "classify.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # where its data classes look for their annotations
    spec.loader.exec_module(loaded)
    return loaded


classify = module()


def run(*arguments: object) -> int:
    """The script's exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["classify.py", *map(str, arguments)])
        code: int = classify.main()
    return code


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sentence encoder, as sentence-transformers would save it."""
    folder = tmp_path_factory.mktemp("encoder")
    layer = {"num_heads": 2, "head_dim": 8, "mlp_dim": 32}
    torch.manual_seed(0)
    settings = {
        "vocabulary_size": len(VOCABULARY),
        "num_positions": 32,
        "embed_dim": 16,
        "token_types": 2,
        "layers": (layer, layer),
        "dropout": 0.1,
        "pooling": "mean",
        "normalize": True,
    }
    save_pretrained(TextEncoder(EncoderSettings.model_validate(settings)), folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of three sections, which a word of each tells."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, size in (("train", 320), ("validation", 40), ("test", 60)):
        rows = []
        for number in range(size):
            section = list(TOPICS)[number % 3]
            words = [*rng.choice(COMMON, rng.integers(3, 20)), str(rng.choice(TOPICS[section]))]
            rows.append({"text": " ".join(words[::-1]), "section": section})
        (folder / f"sections-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def arguments(encoder: Path, data: Path) -> list[object]:
    options = {"checkpoint": encoder, "data": data, "epochs": 10, "lr": 1e-2, "max-tokens": MAX_TOKENS}
    return [part for name, value in options.items() for part in (f"--{name}", value)]


@pytest.fixture(scope="module")
def finished(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "fp32"
    assert run("finetune", *arguments, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def file(finished: Path, data: Path) -> Path:
    """What `lil compress` makes of it, with the example's recipe."""
    texts, out = data / "sections-train.jsonl", finished.parent
    command = ["compress", finished, "--data", texts, "--recipe", FOLDER / "pot4.toml", "--out", out]
    assert main([*map(str, command), "--set", "data.test=60", "--set", "quantize.texts=64", "--quiet"]) == 0
    return out / "pot4" / "model.lil"


def test_it_learns_and_embeddings_stay(finished: Path, encoder: Path, data: Path) -> None:
    base, model = load_pretrained(encoder), load_pretrained(finished)
    assert isinstance(base, TextEncoder) and isinstance(model, TextEncoder)
    assert model.labels == tuple(TOPICS)
    assert model.settings.num_positions == MAX_TOKENS
    assert torch.equal(model.words, base.words) and torch.equal(model.positions, base.positions[:MAX_TOKENS])
    before, after = base.linears(), model.linears()
    assert not any(torch.equal(linear.weight, after[name].weight) for name, linear in before.items())
    texts, sections = classify.read_labelled(data / "sections-test.jsonl")
    answers = classify.answers_of(finished, texts, 1, classify.Console(stderr=True))
    assert np.mean([a == b for a, b in zip(answers.sections, sections, strict=True)]) > 0.95
    assert sorted(path.name for path in finished.iterdir() if not path.name.startswith(".")) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    ]


def test_transformers_reads_the_folder(finished: Path, data: Path) -> None:
    """Words, cut and logits are the same there."""
    texts = classify.read_labelled(data / "sections-test.jsonl")[0][:16]
    public = transformers.AutoModelForSequenceClassification.from_pretrained(finished).eval()
    given = transformers.AutoTokenizer.from_pretrained(finished)(
        texts, truncation=True, padding=True, return_tensors="pt"
    )
    ours = classify.encoder_of(finished, MAX_TOKENS)(texts)
    assert max(ours.lengths) == MAX_TOKENS == given["input_ids"].shape[1]
    with torch.no_grad():
        expected = public(**given).logits
    assert (classify.outputs(load_pretrained(finished), ours) - expected).abs().max() < 1e-5
    assert tuple(public.config.id2label.values()) == tuple(TOPICS)


def test_an_interrupted_training_ends_with_the_same_bits(
    finished: Path, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, steps = classify.Classification.loss, []

    def interrupted(*given: object) -> torch.Tensor:
        steps.append(given[3])
        if len(steps) == 25:
            signal.raise_signal(signal.SIGINT)
        result: torch.Tensor = loss(*given)
        return result

    monkeypatch.setattr(classify.Classification, "loss", interrupted)
    assert run("finetune", *arguments, "--out", tmp_path) == 130
    assert not (tmp_path / "config.json").exists()
    assert run("finetune", *arguments, "--out", tmp_path) == 0
    assert len(steps) == 100  # 10 epochs of 320 // 32 batches, none twice
    assert (tmp_path / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_file_is_measured_beside_the_folder(
    finished: Path, file: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", finished, file, "--data", data) == 0
    printed = capsys.readouterr().out
    texts, sections = classify.read_labelled(data / "sections-test.jsonl")
    with open_text_model(file) as session:
        assert session.max_tokens == MAX_TOKENS
        chosen = [session.labels[index] for index in session.predict(texts)[0]]
    accuracy = np.mean([a == b for a, b in zip(chosen, sections, strict=True)])
    assert accuracy > 0.9
    row = next(line for line in printed.splitlines() if "model.lil" in line)
    assert f"{file.stat().st_size:,}" in row and percent(accuracy) in row
    assert "always 'games'" in printed and percent(1 / 3) in printed


def test_macro_f1_counts_sections_alike(finished: Path) -> None:
    """Of 'a' 3 of 4 are found and nothing else is called so: F1 6/7. 'b': 1 of 1 found, of 2 called so: 2/3."""
    answers = [classify.Answers("m", 1, "", ["a", "a", "a", "b", "b"])]
    shown = classify.table(answers, ["a", "a", "a", "a", "b"])
    assert next(iter(shown.columns[2].cells)) == percent(4 / 5)
    assert next(iter(shown.columns[3].cells)) == percent((6 / 7 + 2 / 3) / 2)


def test_the_file_says_labels(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(file), "puzzle for the library", "--json", "--top", "1"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["label"] == "games"


def test_the_recipe_is_valid() -> None:
    recipe = load_recipe(FOLDER / "pot4.toml", ["name=int4", "quantize.weight_format=int4"], TextCompressRecipe)
    assert (recipe.name, recipe.quantize.weight_format) == ("int4", "int4")
    assert recipe.stages == ("quantize", "export", "evaluate")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no texts"),
        ('{"text": "a", "section": "b"}\n{"text": "a"}\n', "line 2: must be"),
        ('{"text": "a", "section": 1}', "line 1: must be"),
        ("[1]", "line 1: must be"),
        ("text\n", "line 1: must be"),
    ],
)
def test_texts_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "sections.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        classify.read_labelled(tmp_path / "sections.jsonl")


def test_mistakes_are_one_line_before_anything_is_written(
    arguments: list[object], data: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = shutil.copytree(data, tmp_path / "few")
    (few / "sections-train.jsonl").write_text('{"text": "chess", "section": "games"}\n')
    cases = [
        (["finetune", *arguments, "--data", tmp_path], "sections-train.jsonl: cannot be read"),
        (["finetune", *arguments, "--checkpoint", tmp_path / "none"], "there is no such folder"),
        (["finetune", *arguments, "--data", few], "of 1 texts to train on none is of 'net'"),
        (["finetune", *arguments, "--lr", "0"], "lr: Input should be greater than 0"),
        (["finetune", *arguments, "--max-tokens", "1"], "max_tokens: 1; must be an integer of at least 2"),
        (["evaluate", encoder, "--data", data], "has no classifier; must be what `finetune` wrote"),
        (["evaluate", tmp_path / "none.lil", "--data", data], "none.lil"),
    ]
    for given, message in cases:
        assert run(*given, *(["--out", tmp_path / "out"] if given[0] == "finetune" else [])) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "out").exists()


def test_without_the_package_a_folder_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(UserError, match=r"^--checkpoint: none given, .* is not installed"):
        classify.packaged()
