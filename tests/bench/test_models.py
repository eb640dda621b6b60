"""The models that are measured: random weights, with the sizes, the format and the zero blocks that were asked for."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lilliput.config import ModelSettings, QuantizeSettings
from lilliput.program import reference

SETTINGS = ModelSettings(patch_size=8, embed_dim=32, depth=1, num_heads=2, mlp_dim=64)


@pytest.fixture(scope="module")
def models() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "models.py"
    spec = importlib.util.spec_from_file_location("benchmarks_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("weight_format", ["pot4", "int8"])
def test_blocks_are_zero_in_the_program(models: ModuleType, weight_format: str) -> None:
    settings = QuantizeSettings.model_validate({"weight_format": weight_format})
    program = models.random_model(SETTINGS, settings, (16, 16, 3), zero_blocks=0.5, block=(16, 16))
    weights = {tensor.name: tensor for tensor in program.tensors if tensor.role == "weight"}
    assert {tensor.format for tensor in weights.values()} == {weight_format}
    blocks = weights["blocks.0.attn.qkv.weight"].values.reshape(6, 16, 2, 16)
    assert np.count_nonzero(~blocks.any(axis=(1, 3))) == 6
    assert np.count_nonzero(blocks) > 0.8 * blocks.size / 2


def test_models_are_seeded(models: ModuleType) -> None:
    settings = QuantizeSettings()
    first, again, other = (models.random_model(SETTINGS, settings, (16, 16, 3), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.golden_outputs, again.golden_outputs)
    assert (first.golden_outputs != other.golden_outputs).any()


def test_random_models_tell_images_apart(models: ModuleType) -> None:
    program = models.random_model(SETTINGS, QuantizeSettings(), (16, 16, 3))
    images = models.random_images(64, (16, 16, 3), 9).reshape(64, 256, 3)
    assert len(np.unique(reference.run(program, images).argmax(axis=1))) >= 3
