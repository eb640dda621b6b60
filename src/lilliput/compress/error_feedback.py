"""Rounding a layer's weights to a format so that its outputs change little (Frantar et al. 2022, GPTQ).

Axes: N outputs, K inputs, n examples (tokens). A layer computes `W x + b`. Of its inputs only moments are kept: the
squared change of its outputs over all examples is `tr((W - Q) H (W - Q)^T)`, with `H = sum (x - m) (x - m)^T` around
their mean `m`; what the mean loses, the bias takes up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.models.stack import WeightQuantizer

BLOCK = 128  # columns whose errors are spread over each other one by one, and over the rest together


@dataclass
class InputMoments:
    """Sums over the inputs of a layer: `x` as the compressed model gives them, `y` as the original gives them.

    All are float64: `count` examples, sums [K], and the sum of products `xx` = sum x x^T, [K, K].
    """

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor

    @staticmethod
    def zeros(dim: int) -> "InputMoments":
        x, y = torch.zeros(2, dim, dtype=torch.float64)
        return InputMoments(0, x, y, torch.zeros(dim, dim, dtype=torch.float64))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add inputs of the same examples, [n, K] each."""
        self.count += len(x)
        self.x += x.sum(dim=0, dtype=torch.float64)
        self.y += y.sum(dim=0, dtype=torch.float64)
        self.xx += x.T @ x

    def hessian(self) -> Tensor:
        """H, [K, K]."""
        return self.xx - torch.outer(self.x, self.x / self.count)

    def bias(self, weight: Tensor, rounded: Tensor, bias: Tensor) -> Tensor:
        """The bias with which `rounded` gives, on average over its inputs, what `weight` and `bias` give on theirs."""
        before, after = weight.to(torch.float64) @ self.y, rounded.to(torch.float64) @ self.x
        return bias + ((before - after) / self.count).to(torch.float32)


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H with `damping` times the mean of its diagonal added to the diagonal; never singular."""
    extra = damping * float(hessian.diagonal().mean())
    return hessian + torch.eye(len(hessian), dtype=hessian.dtype) * (extra if extra > 0 else 1.0)


def round_with_feedback(weight: Tensor, hessian: Tensor, quantizer: WeightQuantizer, damping: float) -> Tensor:
    """`weight` rounded to the quantiser's grid, column by column, the error of each spread over those that follow.

    Columns go in the order of decreasing diagonal of H. With a diagonal H this is plain rounding to the nearest level.

    Args:
        weight: [N, K].
        hessian: H, [K, K].
        quantizer: its scales are used as they are.
        damping: share of the mean diagonal that is added to the diagonal.

    Returns:
        levels times scale, [N, K], float32.
    """
    order = hessian.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(hessian[order][:, order], damping)))
    factor = torch.linalg.cholesky(inverse, upper=True).to(torch.float32)
    rest = weight.to(torch.float32)[:, order].clone()
    scale = quantizer.row_scale().detach()
    rounded = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        end = min(start + BLOCK, rest.shape[1])
        errors = torch.empty(len(rest), end - start)
        for column in range(start, end):
            rounded[:, column] = (quantizer.nearest(rest[:, column : column + 1] / scale) * scale)[:, 0]
            error = (rest[:, column] - rounded[:, column]) / factor[column, column]
            rest[:, column:end] -= torch.outer(error, factor[column, column:end])
            errors[:, column - start] = error
        rest[:, end:] -= errors @ factor[start:end, end:]
    result = torch.empty_like(rounded)
    result[:, order] = rounded
    return result


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """`tr((W - Q) H (W - Q)^T)`: squared change of all outputs over all examples."""
    difference = weight.to(torch.float64) - rounded.to(torch.float64)
    return float(((difference @ hessian) * difference).sum())
