"""The tables say what the inspection found."""

import io
import re
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from lilliput import artifact
from lilliput.program.program import Vocabulary
from lilliput.report.inspect import CATEGORIES, inspect_file
from lilliput.report.terminal import print_inspection


def printed(model_file: Path) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_inspection(inspect_file(model_file), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tables_hold_the_numbers(model_file: Path) -> None:
    contents = inspect_file(model_file)
    text = printed(model_file)
    for name in ("file_bytes", "fp32_bytes", "parameters", "weights", "nonzero_weights", "arena_bytes", "macs"):
        assert f"{contents[name]:,}" in text, name
    for title in ("Bytes by kind", "Bytes by layer", "Ops", "Buffer plan"):
        assert title in text
    for layer in contents["layers"]:
        assert re.search(rf"^{re.escape(layer['layer'])} .* {layer['bytes']:,}\s*$", text, re.MULTILINE), layer
    assert "pot4 1,088, int8 48" in text


def test_plan_draws_each_life_over_the_ops(model_file: Path) -> None:
    contents = inspect_file(model_file)
    bars = re.findall(r"[·█]{2,}(?=\s*$)", printed(model_file), re.MULTILINE)
    bars = [bar for bar in bars if len(bar) == len(contents["ops"])]
    assert len(bars) == len(contents["buffers"])
    expected = sorted(
        "·" * buffer["first_op"]
        + "█" * (buffer["last_op"] - buffer["first_op"] + 1)
        + "·" * (len(contents["ops"]) - 1 - buffer["last_op"])
        for buffer in contents["buffers"]
    )
    assert sorted(bars) == expected


@pytest.fixture
def text_file(text_models: ModuleType, tmp_path: Path) -> Path:
    artifact.write(text_models.text_program(), tmp_path / "text.lil")
    return tmp_path / "text.lil"


def test_tables_of_a_model_of_text(text_file: Path, model_file: Path) -> None:
    contents, text = inspect_file(text_file), printed(text_file)
    assert "text-embedding: sequences of 1 to 24 tokens; tokenizer: wordpiece, 14 tokens, 0 merges" in text
    each = contents["sequence"]["arena_bytes_per_token"]
    assert f"{contents['macs']:,} multiply-adds for 24 tokens" in text
    assert f"arena: {each:,} bytes a token (of a multiple of 16), {32 * each:,} for 24" in text
    assert re.search(r"^ *\d+ +attention +T x 36 ", text, re.MULTILINE)
    assert re.search(r"^tokens +u32 +T x 1 +input ", text, re.MULTILINE)
    assert re.search(r"^normalize_rows\.\d+ +f32 +1 x 36 +output ", text, re.MULTILINE)
    row = rf"^{CATEGORIES['vocabulary']} +{contents['bytes']['vocabulary']} "
    assert re.search(row, text, re.MULTILINE)
    assert CATEGORIES["vocabulary"] not in printed(model_file)


def test_a_model_without_a_tokenizer(text_models: ModuleType, tmp_path: Path) -> None:
    artifact.write(text_models.text_program(tokenizer=(None, Vocabulary())), tmp_path / "ids.lil")
    assert "no tokenizer: token ids only" in printed(tmp_path / "ids.lil")
