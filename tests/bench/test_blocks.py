"""The script that measures zero blocks: equal training at every share, and figures that come from the files."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lilliput import artifact
from lilliput.config import parse_recipe

ONE_EPOCH = {"epochs": 1, "batch_size": 64}
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"name": "digits", "limit": 128},
    "model": {"patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    **dict.fromkeys(("train", "prune", "finetune", "quantize"), ONE_EPOCH),
}
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)  # it imports its neighbour, models.py
    spec = importlib.util.spec_from_file_location("benchmarks_blocks", FOLDER / "blocks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_share_is_trained_as_long(blocks: ModuleType) -> None:
    recipe = parse_recipe({**SMALL, "prune": {"epochs": 7, "lr": 3e-4}, "finetune": {"epochs": 2}}, "small")
    dense, sparse = (blocks.variant(recipe, share, (16, 8)) for share in (0.0, 0.75))
    assert "prune" not in dense.stages
    assert (dense.finetune.epochs, dense.finetune.lr) == (9, 3e-4)
    assert sparse.prune.epochs + sparse.finetune.epochs == 9
    assert (sparse.prune.block, sparse.prune.sparsity) == ((16, 8), 0.75)
    assert dense.train == sparse.train and dense.quantize == sparse.quantize


def test_figures_are_those_of_the_files(blocks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "load_recipe", lambda path, overrides: parse_recipe(SMALL, "small"))
    arguments = [
        "--shares",
        "0",
        "0.5",
        "--runs",
        str(tmp_path),
        "--out",
        str(tmp_path / "o.json"),
        "--seconds",
        "0.05",
    ]
    monkeypatch.setattr(sys, "argv", ["blocks.py", *arguments])
    assert blocks.main() == 0
    results = json.loads((tmp_path / "o.json").read_text())
    dense, sparse = results["models"]
    assert [one["zero_blocks"] for one in (dense, sparse)] == [0.0, 0.5]
    for one, name in ((dense, "small-blocks-0"), (sparse, "small-blocks-50")):
        path = tmp_path / name / "model.lil"
        assert one["file_bytes"] == path.stat().st_size
        program = artifact.read(path)
        assert one["weight_bytes"] == sum(tensor.stored_bytes for tensor in program.tensors if tensor.role == "weight")
        assert one["latency_us"] > 0
    assert sparse["blocks_stored"] <= 0.5 * dense["blocks_stored"]
    assert sparse["macs"] < dense["macs"] and sparse["file_bytes"] < dense["file_bytes"]
    train = [json.loads((tmp_path / f"small-blocks-{n}/01-train/record.json").read_text()) for n in (0, 50)]
    assert train[0] == train[1], "trained once"
