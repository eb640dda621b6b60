"""A Hugging Face folder as the peers run it gives what our own reading of the folder gives."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lilliput import artifact
from lilliput.models.encoder import EncoderLayerSettings, EncoderSettings, HeadSettings, TextEncoder
from lilliput.models.huggingface import save_pretrained
from lilliput.peers.inputs import save
from lilliput.peers.sources import example_of, module_of
from lilliput.peers.table import Job
from lilliput.program.program import Program

COMMON = {
    "vocabulary_size": 30,
    "num_positions": 16,
    "token_types": 2,
    "embed_dim": 16,
    "layers": (EncoderLayerSettings(num_heads=2, head_dim=8, mlp_dim=24),) * 2,
}
KINDS = {
    "mean": EncoderSettings.model_validate(COMMON | {"pooling": "mean", "normalize": True}),
    "first token": EncoderSettings.model_validate(COMMON | {"pooling": "cls"}),
    "classes": EncoderSettings.model_validate(
        COMMON | {"pooling": "cls", "head": HeadSettings(labels=("a", "b", "c"), hidden_dim=16)}
    ),
}


def job_of(folder: Path, checkpoint: Path | None, batch: int) -> Job:
    rng = np.random.default_rng(0)
    inputs = save([rng.integers(0, 30, length).astype(np.uint32) for length in (3, 9, 5)], str(folder / "inputs"))
    model = str(folder / "model.lil")
    return Job("", "", model, "", inputs, inputs, batch, 1, None, None if checkpoint is None else str(checkpoint))


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_folder(name: str, explicit: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TextEncoder(KINDS[name]).eval()
    save_pretrained(model, tmp_path)
    job = job_of(tmp_path, tmp_path, 3)
    module = module_of(job, explicit)
    alone, together = example_of(job, 1), example_of(job, 3)
    assert len(alone) == 1 and len(together) == 2
    with torch.no_grad():
        torch.testing.assert_close(module(*alone), model(*alone), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module(*together), model(together[0], together[1].bool()), rtol=1e-4, atol=1e-5)


def test_a_folder_that_names_no_architecture(tmp_path: Path) -> None:
    """Is one of the model alone, as when it is loaded."""
    model = TextEncoder(KINDS["mean"]).eval()
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    job = job_of(tmp_path, tmp_path, 1)
    example = example_of(job, 1)
    with torch.no_grad():
        torch.testing.assert_close(module_of(job)(*example), model(*example), rtol=1e-4, atol=1e-5)


def test_without_a_folder_it_is_the_program(tmp_path: Path, text_program: Callable[[str], Program]) -> None:
    program = text_program("vectors")
    artifact.write(program, tmp_path / "model.lil")
    job = job_of(tmp_path, None, 3)
    module = module_of(job)
    assert module(*example_of(job, 3)).shape == (3, program.buffers[program.output].cols)
