"""A small real file, and the records of a run as the pipeline writes them."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lilliput import artifact
from lilliput.program.builder import ProgramBuilder, with_golden
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.program.program import Program
from lilliput.report import encode_image

CLASSES = ("cat", "dog", "<b>owl</b>")
TOKENS, DIM = 5, 16
# Zeros that the builder below plants in each tensor of role `weight`, by name.
PLANTED_ZEROS = {
    "patch_embed.proj.weight": 20,
    "blocks.0.attn.qkv.weight": 500,
    "blocks.0.attn.proj.weight": 0,
    "head.weight": 48,
}


def _levels(name: str, rows: int, cols: int, format: str) -> NDArray[np.int8]:
    """Random levels of a format, none of them zero but the planted ones."""
    rng = np.random.default_rng(len(name) * 1000 + rows)
    grid = WEIGHT_FORMATS[format].grid
    levels = rng.choice(grid[grid != 0], size=rows * cols).astype(np.int8)
    levels[rng.permutation(rows * cols)[: PLANTED_ZEROS.get(name, 0)]] = 0
    return levels.reshape(rows, cols)


class _Small:
    """Emits named layers, as lowering does."""

    def __init__(self) -> None:
        self.builder = ProgramBuilder()

    def vector(self, name: str, role: str, length: int, format: str = "bf16", value: float = 0.5) -> int:
        return self.builder.tensor(name, role=role, format=format, values=np.full((1, length), value, np.float32))

    def linear(self, name: str, x: int, rows: int, cols: int, residual: int | None = None) -> int:
        format = "int8" if name == "head" else "pot4"
        levels = _levels(f"{name}.weight", rows, cols, format)
        weight = self.builder.tensor(f"{name}.weight", role="weight", format=format, layout="tiles", values=levels)
        tensors = [weight, self.vector(f"{name}.weight.scale", "scale", rows, value=0.0078125)]
        tensors.append(self.vector(f"{name}.bias", "bias", rows))
        quantized = self.builder.emit("quantize", [x])
        if residual is not None:
            return self.builder.emit("linear_add", [*quantized, residual], tensors=tensors)
        return self.builder.emit("linear", [*quantized], tensors=tensors, activation=0)

    def table(self, name: str, rows: int) -> list[int]:
        codes = self.builder.tensor(name, role="embedding", format="int8", values=_levels(name, rows, DIM, "int8"))
        return [codes, self.vector(f"{name}.scale", "scale", rows, value=0.0078125)]

    def norm(self, name: str, x: int) -> int:
        tensors = [self.vector(f"{name}.{part}", "norm", DIM) for part in ("weight", "bias")]
        return self.builder.emit("layer_norm", [x], tensors=tensors, eps=1e-6)

    def program(self) -> Program:
        builder = self.builder
        x = builder.input("image", rows=16, cols=1)
        pixels = [self.vector(f"pixel_{part}", "constant", 1, "f32") for part in ("scale", "shift")]
        x = builder.emit("normalize", [x], tensors=pixels)
        x = builder.emit("unfold", [x], height=4, width=4, kernel=2, stride=2, padding=0)
        x = self.linear("patch_embed.proj", x, DIM, 4)
        x = builder.emit("prepend_token", [x], tensors=self.table("class_token", 1))
        x = builder.emit("add_positions", [x], tensors=self.table("positions", TOKENS))
        qkv = self.linear("blocks.0.attn.qkv", self.norm("blocks.0.norm1", x), 3 * DIM, DIM)
        context = builder.emit("attention", [qkv], num_heads=2, head_dim=8, logit_scale=0.35)
        x = self.linear("blocks.0.attn.proj", context, DIM, DIM, residual=x)
        x = self.norm("norm", builder.emit("select_row", [x], row=0))
        logits = self.linear("head", x, len(CLASSES), DIM)
        metadata = {
            "task": "image-classification",
            "labels": list(CLASSES),
            "image": {"height": 4, "width": 4, "channels": 1},
            "provenance": {"recipe": "small", "data": {"name": "digits"}},
        }
        program = builder.build(output=logits, metadata=metadata)
        golden = np.arange(2 * 16, dtype=np.uint8).reshape(2, 16, 1) * 7
        return with_golden(program, golden)


@pytest.fixture(scope="session")
def program() -> Program:
    return _Small().program()


@pytest.fixture(scope="session")
def planted_zeros() -> dict[str, int]:
    return PLANTED_ZEROS


@pytest.fixture(scope="session")
def model_file(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.lil"
    artifact.write(program, path)
    return path


def _training(stage: str, accuracy: float, nonzero: int, epochs: int, ledger: list[dict[str, Any]]) -> dict[str, Any]:
    losses = 0.5 + 1.5 * np.exp(-np.arange(1, epochs + 1) / 3)
    history = [
        {
            "epoch": epoch,
            "step": 11 * epoch,
            "train_loss": float(loss),
            "validation_loss": float(loss + 0.1),
            "validation_accuracy": accuracy,
            "lr": 1e-3,
            "seconds": 1.5 * epoch,
        }
        for epoch, loss in enumerate(losses, start=1)
    ]
    return {
        "stage": stage,
        "seconds": 41.2,
        "simulated": True,
        "parameters": 1400,
        "validation_accuracy": accuracy + 0.01,
        "test_accuracy": accuracy,
        "weights": 1136,
        "nonzero_weights": nonzero,
        "sparsity": 1 - nonzero / 1136,
        "history": history,
        "ledger": ledger,
    }


def make_records() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sparsity = {"claim": "sparsity", "stage": "prune", "detail": "at least 500 of 1136 weights are zero", "holds": True}
    levels = {"claim": "format", "stage": "quantize", "detail": "every weight is a level of pot4", "holds": True}
    samples = [
        {
            "index": index,
            "label": index % 3,
            "prediction": index % 3 if index != 4 else 0,
            "probability": 0.5 + index / 20,
            "image": encode_image(rng.integers(0, 256, (4, 4, 1), dtype=np.uint8)),
        }
        for index in range(6)
    ]
    return {
        "name": "small",
        "title": None,
        "lilliput": "0.1.0",
        "commit": "abc1234",
        "machine": {"cpu": "A fast one", "cores": 2, "system": "Linux 6", "python": "3.11.7", "torch": "2.13.0"},
        "data": {
            "name": "pets",
            "classes": list(CLASSES),
            "image": [4, 4, 1],
            "train": 1293,
            "validation": 144,
            "test": 36,
        },
        "model": {"parameters": 1400, "fp32_bytes": 5600, "settings": {"patch_size": 2}},
        "stages": [
            _training("train", 0.9806, 1136, 12, []),
            _training("prune", 0.9703, 568, 6, [sparsity]),
            _training("finetune", 0.9702, 568, 2, [sparsity]),
            _training("quantize", 0.9611, 566, 1, [sparsity, levels]),
            {"stage": "export", "seconds": 1.0, "file": "model.lil", "file_bytes": 4096, "ledger": [sparsity, levels]},
            {
                "stage": "evaluate",
                "seconds": 2.0,
                "simulated": False,
                "data": "pets",
                "part": "test",
                "examples": 36,
                "accuracy": 34 / 36,
                "confusion": [[12, 0, 0], [1, 11, 0], [0, 1, 11]],
                "differing_predictions": 0,
                "max_logit_difference": 0.00123,
                "engine": {"runtime": "lilliput C scalar", "threads": 1},
                "samples": samples,
                "ledger": [sparsity, levels],
            },
        ],
    }


@pytest.fixture
def records() -> dict[str, Any]:
    """Fresh for each test, which may change it."""
    return make_records()


@pytest.fixture
def run_dir(model_file: Path, tmp_path: Path, records: dict[str, Any]) -> Path:
    """A run folder as the pipeline leaves it, but for the page."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(model_file, folder / "model.lil")
    records["recipe"] = {
        "name": "small",
        "seed": 3,
        "stages": ["train", "prune", "finetune", "quantize", "export", "evaluate", "report"],
        "data": {"name": "folder", "path": None},
        "model": {"patch_size": 2, "layers": None, "stem": [{"channels": 32, "stride": 2}]},
        "train": {"epochs": 12, "lr": 0.001},
        "prune": {"sparsity": 0.5},
    }
    (folder / "records.json").write_text(json.dumps(records))
    return folder


Browser = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Runs a headless Chromium on a page, with no host in reach. Without one the test is skipped (in CI: fails)."""
    program = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs chromium; Debian: apt install chromium")

    def run(page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        fixed = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
        )
        environment = os.environ | {"HOME": str(tmp_path)}
        command = [program, *fixed, *arguments, page.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120)

    return run
