"""Low rank: a weight becomes the product of two thin ones where that takes fewer numbers.

Axes: K inputs, N outputs, r the rank, n examples (tokens) that a layer sees. A product of rank r has r (N + K) numbers,
so it is smaller than W [N, K] if r < N K / (N + K). Three methods differ in what they take singular values of: `W S`,
with S the identity, or found from the layer's inputs x. With `W S = U diag(s) V^T`, the factors are `U_r diag(s_r)^1/2`
and `diag(s_r)^1/2 V_r^T S^-1`.

- `svd`: S = 1: the least change of the weight.
- `whitened` (SVD-LLM; Wang et al. 2024): S S^T = mean of x x^T, S lower triangular (Cholesky): the least change of the
  outputs on those inputs; its square is, on average over them, the sum of the s^2 that were left out. (The paper has
  the sum over x in place of the mean. That changes neither rank nor product, but makes `inner` n^1/4 times smaller and
  `outer` larger by as much, and factors of unlike size train badly.)
- `asvd` (ASVD; Yuan et al. 2023): S = diag(mean |x_j|^alpha + 1e-6).

All inputs are those of the model before any layer was factored; of a layer that is run at several depths, those of all
depths together. Everything is done in float64, without chance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.compress.base import Claim, Model, Pass
from lilliput.compress.formats import begins
from lilliput.compress.watch import inputs_watched
from lilliput.config import FactorizeSettings
from lilliput.errors import FailureError, RecipeError
from lilliput.models.layers import Linear
from lilliput.models.low_rank import low_rank_layers, lower_ranks
from lilliput.models.vit import ViT
from lilliput.program.program import Program
from lilliput.train.calibration import Calibration

DEFAULT_BUDGET = 0.5
JITTER = 1e-6
INNER, OUTER = ".inner.weight", ".outer.weight"


@dataclass(frozen=True)
class Decomposition:
    """`W = left diag(values) right`, float64: U [N, m], s [m] from the largest on, V^T S^-1 [m, K], m = min(N, K)."""

    left: Tensor
    values: Tensor
    right: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Weights of `outer` [N, r] and `inner` [r, K]."""
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]

    def kept(self) -> Tensor:
        """Share of the squared singular values that each rank, from 1 on, keeps: [m]."""
        sums = self.values.square().cumsum(dim=0)
        return sums / sums[-1] if sums[-1] > 0 else torch.ones_like(sums)


def decompose(weight: Tensor, scaling: Tensor) -> Decomposition:
    """`W S` [N, K] by its singular values; `scaling` is S [K, K], lower triangular. The entry of largest magnitude of
    each left vector is positive."""
    left, values, right = torch.linalg.svd(weight.to("cpu", torch.float64) @ scaling, full_matrices=False)
    signs = left.gather(0, left.abs().argmax(dim=0, keepdim=True)).sign()
    right = torch.linalg.solve_triangular(scaling, right, upper=False, left=False)
    return Decomposition(left * signs, values, right * signs.T)


def whitening(moments: Tensor) -> Tensor:
    """S of `whitened` from the mean of x x^T, [K, K]. Where that is not positive definite, `1e-6 - lambda_min` is added
    to its diagonal, and ten times as much for as long as it is not in float64."""
    lower, failed = torch.linalg.cholesky_ex(moments)
    extra = JITTER + max(0.0, -float(torch.linalg.eigvalsh(moments)[0])) if failed else 0.0
    while failed:
        lower, failed = torch.linalg.cholesky_ex(moments + extra * torch.eye(len(moments), dtype=moments.dtype))
        extra *= 10
    return lower


def activation_scaling(magnitudes: Tensor, alpha: float) -> Tensor:
    """S of `asvd` from the mean |x_j|, [K]."""
    return torch.diag(magnitudes**alpha + JITTER)


def worthwhile_rank(shape: torch.Size) -> int:
    """The largest rank whose two factors have fewer numbers than a weight [N, K]; 0: none has."""
    outputs, inputs = shape
    return math.ceil(outputs * inputs / (outputs + inputs)) - 1


def rank_by_energy(decomposition: Decomposition, energy: float) -> int:
    """The least rank that keeps this share of the squared singular values."""
    return int((decomposition.kept() < energy).sum()) + 1


def rank_by_budget(shape: torch.Size, budget: float) -> int:
    """The largest rank whose factors have at most this share of the weight's numbers, but at least 1."""
    outputs, inputs = shape
    return max(1, math.floor(budget * outputs * inputs / (outputs + inputs)))


class Factorization(Pass):
    """Puts a `LowRankLinear` in the place of each chosen layer that gets smaller by it; the others are left alone."""

    def __init__(self, settings: FactorizeSettings) -> None:
        self.settings = settings
        self._refusal: RecipeError | None = None

    def applies_to(self, model: ViT) -> list[str]:
        return [f"{name}.weight" for name in self._chosen(model)]

    def attach(self, model: ViT, calibration: Calibration) -> None:
        """See `Pass.attach`.

        Raises:
            RecipeError: a name in `layers` begins no layer, or no layer would get smaller. (How much energy a rank
                keeps is known of the trained model alone, so that is refused with the stage's first step.)
            FailureError: an input is not finite.
        """
        chosen = self._chosen(model)
        scalings = self._scalings(chosen, lambda: calibration.forward(self.settings.examples))
        found = {name: decompose(linear.weight.detach(), scalings[name]) for name, linear in chosen.items()}
        ranks = {name: self._rank(linear, found[name]) for name, linear in chosen.items()}
        ranks = {name: rank for name, rank in ranks.items() if rank <= worthwhile_rank(chosen[name].weight.shape)}
        if not ranks:
            self._refusal = self._no_gain(chosen, found)
            if self.settings.energy is None:
                raise self._refusal
            return
        _replace(model, {name: found[name].factors(rank) for name, rank in ranks.items()})

    def before_step(self, model: ViT, step: int, total_steps: int) -> None:
        if self._refusal is not None:
            raise self._refusal

    def _chosen(self, model: ViT) -> dict[str, Linear]:
        factors = [linear for layer in low_rank_layers(model).values() for linear in (layer.inner, layer.outer)]
        linears = {name: linear for name, linear in model.linears().items() if linear not in factors}
        for prefix in self.settings.layers:
            if not any(begins(prefix, name) for name in linears):
                raise RecipeError(f"factorize.layers: '{prefix}' is no layer; the layers are {', '.join(linears)}")
        return {n: linear for n, linear in linears.items() if any(begins(p, n) for p in self.settings.layers)}

    def _scalings(self, linears: dict[str, Linear], run: Callable[[], object]) -> dict[str, Tensor]:
        settings = self.settings
        if settings.method == "svd":
            return {name: torch.eye(linear.in_features, dtype=torch.float64) for name, linear in linears.items()}
        if settings.method == "whitened":
            moments = mean_over_inputs(linears, lambda x: x.T @ x, run)
            return {name: whitening(moment) for name, moment in moments.items()}
        magnitudes = mean_over_inputs(linears, lambda x: x.abs().sum(dim=0), run)
        return {name: activation_scaling(mean, settings.alpha) for name, mean in magnitudes.items()}

    def _rank(self, linear: Linear, decomposition: Decomposition) -> int:
        settings = self.settings
        if settings.rank is not None:
            return settings.rank
        if settings.energy is not None:
            return rank_by_energy(decomposition, settings.energy)
        return rank_by_budget(linear.weight.shape, settings.budget or DEFAULT_BUDGET)

    def _no_gain(self, linears: dict[str, Linear], found: dict[str, Decomposition]) -> RecipeError:
        """What would have helped."""
        most = {name: worthwhile_rank(linear.weight.shape) for name, linear in linears.items()}
        why = "no layer would get smaller"
        if not any(most.values()):
            return RecipeError(f"factorize.layers={list(self.settings.layers)}: {why} at any rank; choose larger ones")
        if self.settings.energy is None:
            name = max(most, key=most.__getitem__)
            return RecipeError(f"factorize.rank={self.settings.rank}: {why}; at most {most[name]} helps ({name})")
        kept = {name: float(found[name].kept()[rank - 1]) for name, rank in most.items() if rank}
        name = max(kept, key=kept.__getitem__)
        highest = math.floor(1e4 * kept[name]) / 1e4
        return RecipeError(f"factorize.energy={self.settings.energy}: {why}; at most {highest:.4f} helps ({name})")

    def claims(self, model: ViT) -> list[Claim]:
        layers = low_rank_layers(model)
        ranks = {name: layer.rank for name, layer in layers.items()}
        now = sum(layer.rank * (layer.in_features + layer.out_features) for layer in layers.values())
        before = sum(layer.in_features * layer.out_features for layer in layers.values())
        detail = f"{len(ranks)} layers are of rank {min(ranks.values())} to {max(ranks.values())}: "
        return [Claim("ranks", "factorize", detail + f"{now} weights in place of {before}", {"ranks": ranks})]


def model_ranks(model: Model, values: dict[str, Any]) -> bool:
    """Whether these layers, and no others, have two factors of these ranks."""
    return _have_ranks({f"{name}.weight": tuple(x.weight.shape) for name, x in model.linears().items()}, values)


def program_ranks(program: Program, values: dict[str, Any]) -> bool:
    """The same, of what is in the file."""
    return _have_ranks({t.name: t.values.shape for t in program.tensors if t.role == "weight"}, values)


def _have_ranks(shapes: dict[str, tuple[int, ...]], values: dict[str, Any]) -> bool:
    found = {name.removesuffix(INNER): shape[0] for name, shape in shapes.items() if name.endswith(INNER)}
    outer = {name.removesuffix(OUTER): shape[1] for name, shape in shapes.items() if name.endswith(OUTER)}
    return found == outer == values["ranks"] and not any(f"{name}.weight" in shapes for name in found)


@torch.no_grad()
def mean_over_inputs(
    linears: dict[str, Linear], statistic: Callable[[Tensor], Tensor], run: Callable[[], object]
) -> dict[str, Tensor]:
    """For each layer the mean over the inputs that it gets while `run` goes on, summed up in float64.

    Args:
        linears: by name.
        statistic: from inputs [n, K] to a sum over them.
        run: puts examples through the model.

    Raises:
        FailureError: an input is not finite.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(linears, 0)

    def look(name: str, inputs: Tensor) -> None:
        x = inputs.detach().flatten(end_dim=-2).to("cpu", torch.float64)
        found = statistic(x)
        sums[name] = sums[name] + found if name in sums else found
        counts[name] += len(x)

    with inputs_watched(linears, look):
        run()
    for name, found in sums.items():
        if not bool(torch.isfinite(found).all()):
            raise FailureError(f"factorize: the inputs of {name} are not finite; the model has diverged")
    return {name: sums[name] / counts[name] for name in linears}


@torch.no_grad()
def _replace(model: ViT, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Put these (outer, inner) weights in the place of the layers, in the model and in its settings."""
    ranks = {name: len(inner) for name, (_, inner) in factors.items()}
    biases = {name: linear.bias for name, linear in model.linears().items()}
    lower_ranks(model, ranks)
    layers = low_rank_layers(model)
    for name, (outer, inner) in factors.items():
        layers[name].outer.weight.copy_(outer)
        layers[name].outer.bias.copy_(biases[name])
        layers[name].inner.weight.copy_(inner)
    model.settings = model.settings.model_copy(update={"preset": None, "ranks": model.settings.ranks | ranks})
