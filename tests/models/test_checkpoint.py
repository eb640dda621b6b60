"""Saved models: they come back whole, stacks included, and what is wrong with a damaged one is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lilliput.compress.prune import MagnitudePruning
from lilliput.compress.quantize import Quantization
from lilliput.config import LayerSettings, ModelSettings, PruneSettings, QuantizeSettings
from lilliput.errors import FailureError
from lilliput.models.checkpoint import CheckpointError, describe_stacks, load_model, save_model
from lilliput.models.vit import ViT


def pruned_and_quantized() -> ViT:
    torch.manual_seed(0)
    layers = (LayerSettings(num_heads=3, head_dim=4, mlp_dim=10), LayerSettings(num_heads=1, head_dim=6, mlp_dim=5))
    model = ViT(ModelSettings(patch_size=4, embed_dim=16, layers=layers), (8, 8, 1), 3)
    pruning = MagnitudePruning(PruneSettings(sparsity=0.4))
    pruning.attach(model)
    pruning.finish(model)
    Quantization(QuantizeSettings(scales="learned")).attach(model)
    return model.eval()


def test_a_model_comes_back_with_its_stacks_and_its_outputs(tmp_path: Path) -> None:
    model = pruned_and_quantized()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path).eval()
    pixels = torch.rand(3, 1, 8, 8) * 255
    assert torch.equal(loaded(pixels), model(pixels))
    assert describe_stacks(loaded) == describe_stacks(model)
    weight = "blocks.0.attn.qkv"
    assert [layer["kind"] for s in describe_stacks(loaded) if s["module"] == weight for layer in s["layers"]] == [
        "mask",
        "quantizer",
        "bf16",
    ]


def damage(folder: Path, name: str, value: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head.parametrizations.bias.original", torch.tensor([0.0, float("nan"), 0.0]), "has NaN or infinite values"),
        ("head.parametrizations.bias.original", torch.tensor([0.0, float("inf"), 0.0]), "has NaN or infinite values"),
        ("head.parametrizations.bias.original", torch.zeros(4), r"has shape \[4\], expected \[3\]"),
        ("head.parametrizations.bias.original", None, "is missing"),
        ("head.more", torch.zeros(1), "is extra"),
    ],
)
def test_a_bad_tensor_is_named(tmp_path: Path, name: str, value: torch.Tensor | None, message: str) -> None:
    save_model(pruned_and_quantized(), tmp_path)
    damage(tmp_path, name, value)
    with pytest.raises(CheckpointError, match=f"tensor {name} {message}"):
        load_model(tmp_path)


def test_missing_and_damaged_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_model(tmp_path)
    save_model(pruned_and_quantized(), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    description = json.loads((tmp_path / "model.json").read_text())
    description["settings"]["embed_dim"] = -1
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="missing or damaged") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_the_model_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned_and_quantized()
    save_model(model, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        model.norm.parametrizations["weight"].original.add_(1.0)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(FailureError, match="No space left on device"):
        save_model(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
