"""Small text programs of every kind."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from lilliput.models.encoder import EncoderLayerSettings, EncoderSettings, HeadSettings
from lilliput.program.program import Program

PLAIN = EncoderLayerSettings(num_heads=2, head_dim=8, mlp_dim=24)
NARROW = EncoderLayerSettings(num_heads=2, head_dim=4, mlp_dim=12, bottleneck_dim=10, stacked_dims=(9,))
TEXT_SETTINGS = {
    "vectors": EncoderSettings(
        vocabulary_size=40, num_positions=20, embed_dim=16, layers=(PLAIN,) * 2, pooling="mean", normalize=True
    ),
    "classes of the first token": EncoderSettings(
        vocabulary_size=40,
        num_positions=20,
        embed_dim=16,
        layers=(PLAIN,),
        norm_first=True,
        activation="gelu_tanh",
        pooling="cls",
        head=HeadSettings(labels=("a", "b", "c"), hidden_dim=11),
    ),
    "bottlenecks and neighbors": EncoderSettings(
        vocabulary_size=40,
        num_positions=20,
        embed_dim=24,
        embedding_dim=8,
        projection="words",
        trigram=True,
        embedding_norm="no_norm",
        layers=(NARROW,),
        activation="relu",
        pooling="mean",
    ),
}


@pytest.fixture(scope="session")
def text_program() -> Callable[[str], Program]:
    """The program of one of TEXT_SETTINGS, by name."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "text_models.py"
    spec = importlib.util.spec_from_file_location("benchmarks_text_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(name: str) -> Program:
        program: Program = module.random_text_model(TEXT_SETTINGS[name], "int8", "int8")
        return program

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "text_kind" in metafunc.fixturenames:
        metafunc.parametrize("text_kind", list(TEXT_SETTINGS))
