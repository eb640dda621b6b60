"""Write a text `model.lil` with random (seeded) weights, for measuring speed: no checkpoint and no training.

    python benchmarks/text_models.py minilm.lil
    python benchmarks/text_models.py small.lil --embed-dim 128 --depth 2 --num-heads 2 --mlp-dim 512 --weights int8

By default in the shape of MiniLM-L6 (Wang et al. 2020). It takes token ids only: it has no tokenizer.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import lilliput
from lilliput import artifact
from lilliput.compress.hidden import fix_hidden_scales
from lilliput.compress.quantize import attach_quantizers
from lilliput.lower import lower
from lilliput.models.encoder import EncoderLayerSettings, EncoderSettings, TextEncoder
from lilliput.program.builder import with_golden
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.program.program import Program

CALIBRATION_TEXTS = 16
GOLDEN_TOKENS = (1, 3, 17)


def random_text_model(
    settings: EncoderSettings, weight_format: str = "pot4", embedding_format: str = "int4", seed: int = 0
) -> Program:
    """The program of a text encoder with random weights, with some golden examples."""
    torch.manual_seed(seed)
    model = TextEncoder(settings)
    model.merge_token_types()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    tables = ("words", "positions")
    tokens = torch.randint(settings.vocabulary_size, (CALIBRATION_TEXTS, min(128, settings.num_positions)))
    fix_hidden_scales(model.eval(), lambda: model(tokens, torch.ones_like(tokens, dtype=torch.bool)))
    attach_quantizers(model, lambda name: embedding_format if name in tables else weight_format)
    program = lower(model, {"provenance": {"lilliput": lilliput.__version__, "recipe": "random weights", "seed": seed}})
    rng = np.random.default_rng(seed)
    lengths = [min(tokens, program.max_tokens) for tokens in GOLDEN_TOKENS]
    return with_golden(
        program, [rng.integers(0, settings.vocabulary_size, length).astype(np.uint32) for length in lengths]
    )


def main() -> int:
    formats = list(WEIGHT_FORMATS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--weights", choices=formats, default="pot4", help="format of linear weights")
    parser.add_argument("--embeddings", choices=formats, default="int4", help="format of tokens and positions")
    parser.add_argument("--embed-dim", type=int, default=384)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--num-heads", type=int, default=12)
    parser.add_argument("--mlp-dim", type=int, default=1536)
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    layer = EncoderLayerSettings(
        num_heads=given.num_heads, head_dim=given.embed_dim // given.num_heads, mlp_dim=given.mlp_dim
    )
    settings = EncoderSettings(
        vocabulary_size=given.vocabulary,
        num_positions=given.max_tokens,
        embed_dim=given.embed_dim,
        layers=(layer,) * given.depth,
        pooling="mean",
        normalize=True,
    )
    size = artifact.write(random_text_model(settings, given.weights, given.embeddings, given.seed), given.out)
    print(f"{given.out}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
