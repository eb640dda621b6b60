"""Compression passes. One table: the stage's name and its pass."""

from lilliput.compress.base import Claim, Pass
from lilliput.compress.factorize import Factorization
from lilliput.compress.prune import Pruning
from lilliput.compress.quantize import Quantization
from lilliput.compress.share import Sharing
from lilliput.compress.shrink import Shrinking

# stage -> pass; the pass is built from the recipe's settings of that stage
PASSES: dict[str, type[Sharing] | type[Shrinking] | type[Factorization] | type[Pruning] | type[Quantization]] = {
    "share": Sharing,
    "shrink": Shrinking,
    "factorize": Factorization,
    "prune": Pruning,
    "quantize": Quantization,
}

__all__ = ["PASSES", "Claim", "Pass"]
