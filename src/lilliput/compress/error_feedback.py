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

    All are float64: `count` examples, sums [K], and H, [K, K]. H is never a difference of large sums: each part is
    taken around its own mean, and the step between means is added (Chan, Golub and LeVeque 1983). So channels whose
    mean is large keep their digits, and no entry of the diagonal is negative.
    """

    count: int
    x: Tensor
    y: Tensor
    hessian: Tensor

    @staticmethod
    def zeros(dim: int) -> "InputMoments":
        x, y = torch.zeros(2, dim, dtype=torch.float64)
        return InputMoments(0, x, y, torch.zeros(dim, dim, dtype=torch.float64))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add inputs of the same examples, [n, K] each."""
        x = x.to(torch.float64)
        total = x.sum(dim=0)
        centred = x - total / len(x)
        self.hessian += centred.T @ centred
        if self.count:
            step = total / len(x) - self.x / self.count
            self.hessian += torch.outer(step, step * (self.count * len(x) / (self.count + len(x))))
        self.count += len(x)
        self.x += total
        self.y += y.sum(dim=0, dtype=torch.float64)

    def bias(self, weight: Tensor, rounded: Tensor, bias: Tensor) -> Tensor:
        """The bias with which `rounded` gives, on average over its inputs, what `weight` and `bias` give on theirs."""
        before, after = weight.to(torch.float64) @ self.y, rounded.to(torch.float64) @ self.x
        return bias + ((before - after) / self.count).to(torch.float32)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangular U with `U^T U` the inverse of H, after `damping` times the mean of its diagonal was added to
    the diagonal, and ten times as much for as long as H is singular in float64. Without any inputs (H = 0) it is of 1.

    H is factored from its last row to the first, `H = R R^T` with R upper triangular, so that `U = R^-1`: then H has to
    be positive definite, but never its rounded inverse.
    """
    eye, extra = torch.eye(len(hessian), dtype=hessian.dtype), damping * hessian.diagonal().mean()
    if not extra > 0:
        return eye
    while True:
        lower, failed = torch.linalg.cholesky_ex((hessian + extra * eye).flip(0, 1))
        if not failed:
            return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
        extra = 10 * extra


def round_with_feedback(
    weight: Tensor, hessian: Tensor, quantizer: WeightQuantizer, damping: float, mask: Tensor | None = None
) -> Tensor:
    """`weight` rounded to the quantiser's grid, column by column, the error of each spread over those that follow.

    Columns go in the order of decreasing diagonal of H. With a diagonal H this is plain rounding to the nearest level.
    What lands on a weight that is masked is an error too, and is passed on (Frantar and Alistarh 2023, SparseGPT).

    Args:
        weight: [N, K].
        hessian: H, [K, K].
        quantizer: its scales are used as they are.
        damping: share of the mean diagonal that is added to the diagonal, more where H is singular.
        mask: [N, K], 0 where the weight is and stays 0; None: nowhere.

    Returns:
        levels times scale, [N, K], float32.
    """
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = inverse_factor(hessian[order][:, order], damping)
    factor = (factor / factor.diagonal()[:, None]).to(torch.float32)  # only ratios within a row are of use
    rest = weight.to(torch.float32)[:, order].clone()
    kept = torch.ones_like(rest) if mask is None else mask[:, order]
    scale = quantizer.row_scale().detach()
    rounded = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        end = min(start + BLOCK, rest.shape[1])
        errors = torch.empty(len(rest), end - start)
        for column in range(start, end):
            nearest = quantizer.nearest(rest[:, column : column + 1] / scale) * scale
            rounded[:, column] = nearest[:, 0] * kept[:, column]
            error = rest[:, column] - rounded[:, column]
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
