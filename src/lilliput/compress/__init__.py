"""Compression passes. One table: the stage's name and its pass."""

from lilliput.compress.base import Claim, Pass
from lilliput.compress.prune import MagnitudePruning
from lilliput.compress.quantize import Quantization

# stage -> pass; the pass is built from the recipe's settings of that stage
PASSES: dict[str, type[MagnitudePruning] | type[Quantization]] = {
    "prune": MagnitudePruning,
    "quantize": Quantization,
}

__all__ = ["PASSES", "Claim", "Pass"]
