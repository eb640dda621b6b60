"""The names of tables of embeddings are those that models have."""

from typing import Any

import pytest
from torch import nn

from lilliput.config import ModelSettings
from lilliput.models import EMBEDDINGS, TABLES
from lilliput.models.encoder import EncoderSettings, TextEncoder
from lilliput.models.vit import ViT

LAYER = {"num_heads": 2, "head_dim": 4, "mlp_dim": 8}
TEXT: dict[str, Any] = {"vocabulary_size": 5, "num_positions": 4, "embed_dim": 8, "token_types": 2, "layers": (LAYER,)}


@pytest.mark.parametrize(
    "model",
    [
        ViT(ModelSettings(patch_size=2, embed_dim=8, num_heads=2, depth=1, distillation="head"), (4, 4, 1), 2),
        TextEncoder(EncoderSettings.model_validate(TEXT)),
    ],
)
def test_every_parameter_of_the_model_itself_is_a_table(model: nn.Module) -> None:
    tables = {name for name, _ in model.named_parameters(recurse=False)}
    assert {"positions"} < tables <= set(EMBEDDINGS)
    if isinstance(model, TextEncoder):
        model.merge_token_types()
    assert {name for name, _ in model.named_parameters(recurse=False)} == tables & set(TABLES)
