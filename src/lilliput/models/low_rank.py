"""Layers whose weight is the product of two thin ones. Axes: K inputs, N outputs, r the rank."""

from torch import Tensor, nn

from lilliput.errors import RecipeError
from lilliput.models.layers import Linear


class LowRankLinear(nn.Module):
    """`outer(inner(x))`: [..., K] -> [..., r] -> [..., N]. Stands where a `Linear` stood.

    Each factor is a `Linear` with a stack of its own, so later passes and lowering see two layers. The layer's bias is
    that of `outer`; `inner` has one because every product of the program has, and it starts at 0.
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.inner = Linear(in_features, rank)
        self.outer = Linear(rank, out_features)
        nn.init.zeros_(self.inner.bias)

    @property
    def weight(self) -> Tensor:
        """What the factors multiply to, [N, K], computed anew: to be read, not changed."""
        return self.outer.weight @ self.inner.weight

    @property
    def bias(self) -> Tensor:
        """[N]."""
        return self.outer.bias

    def forward(self, input: Tensor) -> Tensor:
        return self.outer(self.inner(input))


def linear_layers(model: nn.Module) -> dict[str, Linear]:
    """Every `Linear` by name; of a layer of low rank both factors, as `<name>.inner` and `<name>.outer`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """Every layer of low rank by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def lower_ranks(model: nn.Module, ranks: dict[str, int]) -> None:
    """Put an untrained `LowRankLinear` of the given rank in the place of each of these layers.

    Raises:
        RecipeError: a name is no layer's, or a rank is above the layer's smaller side.
    """
    layers = linear_layers(model)
    for name, rank in ranks.items():
        if name not in layers:
            raise RecipeError(f"model.ranks: '{name}' is no layer; the layers are {', '.join(layers)}")
        linear = layers[name]
        most = min(linear.in_features, linear.out_features)
        if not 1 <= rank <= most:
            sides = f"{linear.in_features} inputs and {linear.out_features} outputs"
            raise RecipeError(f"model.ranks: '{name}' = {rank} must be 1 to {most}: the layer has {sides}")
        factored = LowRankLinear(linear.in_features, linear.out_features, rank)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, factored.to(linear.weight.device))
