"""Scripts of benchmarks/ as modules, and a small text model."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lilliput import artifact
from lilliput.models.encoder import EncoderLayerSettings, EncoderSettings

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
VOCABULARY = 50


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """From the name of a script to its module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def text_settings() -> EncoderSettings:
    layer = EncoderLayerSettings(num_heads=2, head_dim=12, mlp_dim=40)
    return EncoderSettings(
        vocabulary_size=VOCABULARY, num_positions=24, embed_dim=24, layers=(layer,) * 2, pooling="mean", normalize=True
    )


@pytest.fixture(scope="session")
def text_model(
    tmp_path_factory: pytest.TempPathFactory, script: Callable[[str], ModuleType], text_settings: EncoderSettings
) -> Path:
    """A file that takes up to 24 token ids and gives vectors of 24."""
    path = tmp_path_factory.mktemp("texts") / "model.lil"
    artifact.write(script("text_models").random_text_model(text_settings), path)
    return path
