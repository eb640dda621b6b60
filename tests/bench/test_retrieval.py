"""benchmarks/retrieval.py: figures of the file and of the fp32 model it came from, on a few pairs."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lilliput import artifact
from lilliput.measure import retrieval as measured
from lilliput.models.encoder import EncoderSettings
from lilliput.program.program import Program, Vocabulary
from lilliput.runtime.opening import open_text_model
from lilliput.text.huggingface import read_tokenizer

WORDS = [f"w{number}" for number in range(45)]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture
def retrieval(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("retrieval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 50 tokens as Hugging Face has it."""
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {name: {"id": name, "ids": [TOKENS.index(name)], "tokens": [name]}
                               for name in ("[CLS]", "[SEP]")},
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: number for number, token in enumerate(TOKENS)},
        },
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return path


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory,
    folder: Path,
    script: Callable[[str], ModuleType],
    text_settings: EncoderSettings,
) -> Path:
    """The small text model with that tokenizer inside."""
    program: Program = script("text_models").random_text_model(text_settings)
    settings, tokens, merges = read_tokenizer(folder)
    metadata = {**program.metadata, "tokenizer": settings}
    program = replace(program, metadata=metadata, vocabulary=Vocabulary(tuple(tokens), merges))
    path = tmp_path_factory.mktemp("retrieval") / "model.lil"
    artifact.write(program, path)
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(12):
        words = rng.choice(WORDS, 30).tolist()
        lines.append(json.dumps({"query": " ".join(words[:4]), "document": " ".join(words)}))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(retrieval: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["retrieval.py", *map(str, arguments)])
    code: int = retrieval.main()
    return code


def test_figures_are_those_of_the_file(
    retrieval: ModuleType, model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"
    assert run(retrieval, monkeypatch, model, "--pairs", pairs, "--max-tokens", 9, "--out", out) == 0
    results = json.loads(out.read_text())
    (ours,) = results["engines"]
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    with open_text_model(model) as session:
        cut = [" ".join(line["document"].split()[:7]) for line in lines]  # of 9 tokens 2 are special
        expected = measured(session.embed([line["query"] for line in lines]), session.embed(cut))
    assert (ours["mrr"], ours["recall_at_1"], ours["recall_at_10"]) == (
        expected.mrr,
        expected.recall_at_1,
        expected.recall_at_10,
    )
    assert ours["queries"] == 12 and ours["cosine"] is None
    assert results["file_bytes"] == ours["file_bytes"] == model.stat().st_size


def test_peers_are_compared_with_fp32(
    retrieval: ModuleType,
    model: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(retrieval, "COMPARED", (retrieval.REFERENCE,))
    out = tmp_path / "results.json"
    assert run(retrieval, monkeypatch, model, "--pairs", pairs, "--peers", "--out", out) == 0
    ours, eager = json.loads(out.read_text())["engines"]
    assert eager["cosine"]["min"] == pytest.approx(1.0, abs=1e-6) and eager["mrr_share"] == 1.0
    assert 0.9 < ours["cosine"]["min"] <= ours["cosine"]["p5"] <= ours["cosine"]["mean"] < 1.0
    assert ours["mrr_share"] == pytest.approx(ours["mrr"] / eager["mrr"])
    assert "PyTorch eager fp32" in capsys.readouterr().out


def test_a_tokenizer_may_come_from_the_folder(
    retrieval: ModuleType, text_model: Path, model: Path, folder: Path
) -> None:
    texts = ["w1 w2 w3", "w4"]
    inside = retrieval.tokenize(artifact.read(model), None, texts, 64)
    beside = retrieval.tokenize(artifact.read(text_model), folder, texts, 64)
    assert [ids.tolist() for ids in inside] == [ids.tolist() for ids in beside] == [[2, 6, 7, 8, 3], [2, 9, 3]]


def test_the_folders_tokenizer_is_where_its_transformer_is(
    retrieval: ModuleType, text_model: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "0_Transformer")
    modules = [{"type": "a.Transformer", "path": "0_Transformer"}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (found,) = retrieval.tokenize(artifact.read(text_model), tmp_path, ["w4"], 64)
    assert found.tolist() == [2, 9, 3]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "has no pairs"),
        ('{"query": "a"}', "line 1: must be"),
        ('{"query": "a", "document": "b"}\n[1]', "line 2: must be"),
        ('{"query": "a", "document": 1}', "line 1: must be"),
        (None, "cannot be read"),
    ],
)
def test_bad_pairs_are_one_line(
    retrieval: ModuleType,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    text: str,
) -> None:
    path = tmp_path / "bad.jsonl"
    if content is not None:
        path.write_text(content)
    assert run(retrieval, monkeypatch, model, "--pairs", path) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and text in err


def test_a_file_without_tokenizer_is_refused(
    retrieval: ModuleType,
    text_model: Path,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(retrieval, monkeypatch, text_model, "--pairs", pairs) == 2
    assert "the file has no tokenizer; --checkpoint" in capsys.readouterr().err
