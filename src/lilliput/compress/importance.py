"""How much a model needs its heads, neurons, blocks and columns, found on examples with labels.

Heads and neurons have imagined gates, 1 each, on what is multiplied with the next weight: a head's context before
`attn.proj`, an activated neuron before `fc2`. The importance of a gate g is E |dL/dg| over examples (Michel et al.
2019, section 4.1, there for heads), by one pass forward and backward: dL/dg is the sum of activation times gradient
over what the gate multiplies. The absolute value is each example's, as the paper defines it (its code takes each
token's), so examples of opposite signs do not cancel. A block that is run at several depths has one gate, whose
gradients are added up before that.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lilliput.compress.watch import inputs_watched
from lilliput.errors import FailureError
from lilliput.models.straight_through import TINY
from lilliput.models.vit import ViT
from lilliput.train.calibration import Calibration


def head_importance(model: ViT, calibration: Calibration, examples: int) -> list[Tensor]:
    """E |dL/dgate| of each head, for each block float64 [H], not `normalized` yet.

    Raises:
        FailureError: it is not finite, as in all functions of this module.
    """
    products = _gate_gradients([block.get_submodule("attn.proj") for block in model.blocks], calibration, examples)
    heads = [layer.num_heads for layer in model.settings.resolved_layers()]
    gates = [product.unflatten(1, (count, -1)).sum(dim=2) for product, count in zip(products, heads, strict=True)]
    return [_finite(gate.abs().mean(dim=0)) for gate in gates]


def neuron_importance(model: ViT, calibration: Calibration, examples: int) -> list[Tensor]:
    """E |dL/dgate| of each hidden neuron, for each block float64 [M]."""
    products = _gate_gradients([block.get_submodule("mlp.fc2") for block in model.blocks], calibration, examples)
    return [_finite(product.abs().mean(dim=0)) for product in products]


def column_importance(model: ViT, calibration: Calibration, examples: int) -> Tensor:
    """Of each column of the residual stream: the sum of |activation * gradient| over examples, tokens, and all norms'
    inputs, float64 [D]. A norm mixes the columns, so that a column has no one gate whose gradient could be taken."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    total = torch.zeros(model.settings.embed_dim, dtype=torch.float64)
    for batch in _inputs_and_gradients(norms, calibration.losses(examples)):
        for _, x, gradient in batch:
            total += (x * gradient).abs().sum(dim=(0, 1), dtype=torch.float64).cpu()
    return _finite(total)


@torch.no_grad()
def losses_without(model: ViT, calibration: Calibration, examples: int) -> list[float]:
    """For each block, the mean loss of the model without it, at all depths where it is run."""
    return [_loss_without(block, calibration, examples) for block in model.blocks]


def _loss_without(block: nn.Module, calibration: Calibration, examples: int) -> float:
    hook = block.register_forward_hook(lambda module, inputs, output: inputs[0])
    try:
        losses = torch.cat([batch.double() for batch in calibration.losses(examples)])
    finally:
        hook.remove()
    return float(_finite(losses.mean()))


def normalized(importance: list[Tensor]) -> list[Tensor]:
    """Each block's divided by their L2 norm, so that blocks can be compared (Michel et al. 2019, section 4.1, after
    Molchanov et al. 2017)."""
    return [block / block.norm().clamp_min(TINY) for block in importance]


def least_important(importance: list[Tensor], count: int) -> list[list[int]]:
    """The `count` least important of all blocks together, for each block in order. The most important one of each block
    stays; of equal ones the first goes first."""
    scores = []
    for block in importance:
        scores.append(block.clone())
        scores[-1][block.argmax()] = torch.inf
    assert count <= sum(map(len, scores)) - len(scores), "each block keeps one"
    flat = torch.cat(scores)
    gone = torch.zeros(len(flat), dtype=torch.bool)
    gone[torch.sort(flat, stable=True).indices[:count]] = True
    return [part.nonzero().flatten().tolist() for part in gone.split([len(block) for block in scores])]


def _gate_gradients(readers: list[nn.Module], calibration: Calibration, examples: int) -> list[Tensor]:
    """For each of the modules, dL/dgate of each column of its input, by example: float64 [examples, K]."""
    batches: list[list[Tensor]] = [[] for _ in readers]
    for batch in _inputs_and_gradients(readers, calibration.losses(examples)):
        by_depth = [(index, (x * gradient).sum(dim=1, dtype=torch.float64).cpu()) for index, x, gradient in batch]
        for index, gates in enumerate(batches):
            gates.append(torch.stack([gate for of, gate in by_depth if of == index]).sum(dim=0))
    return [torch.cat(gates) for gates in batches]


def _inputs_and_gradients(
    modules: Sequence[nn.Module], losses: Iterator[Tensor]
) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
    """For each batch of examples: each time that one of the modules is run, its place in the list, its input [B, T, K],
    and the gradient there of each example's own loss."""
    seen: list[tuple[int, Tensor]] = []

    with inputs_watched(dict(enumerate(modules)), lambda index, x: seen.append((index, x))):
        for loss in losses:
            # No example's loss depends on another's input, so the sum's gradient is each one's own.
            gradients = torch.autograd.grad(loss.sum(), [x for _, x in seen])
            yield [(index, x.detach(), gradient) for (index, x), gradient in zip(seen, gradients, strict=True)]
            seen.clear()


def _finite(importance: Tensor) -> Tensor:
    if not bool(torch.isfinite(importance).all()):
        raise FailureError("the importance of a part of the model is not finite; the model has diverged")
    return importance
