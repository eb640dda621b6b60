"""The tables say what the inspection found."""

import io
import re
from pathlib import Path

from rich.console import Console

from lilliput.report.inspect import inspect_file
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
