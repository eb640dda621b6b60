"""What two more bits buy powers of two: errors of weights, and accuracy with nothing but the weights rounded.

    python benchmarks/power_of_two_bits.py runs/digits/01-train --data digits

`pot6`, 0 and 31 powers of two of either sign, is no format of the file: its levels reach to 2^30, those of int8 to 2^6.
Here every grid is simulated in floating point, on each FOLDER's trained model: the weights of its linear layers go to
the nearest level, one scale a row by least squared error, nothing is trained, activations and all else stay fp32.
"""

import argparse
import copy
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lilliput import data
from lilliput.config import DataSettings
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from lilliput.models.checkpoint import describe_stacks, load_model
from lilliput.models.vit import ViT
from lilliput.program.formats import WEIGHT_FORMATS
from lilliput.train.images import predict


def signed(magnitudes: Tensor) -> Tensor:
    return torch.cat([-magnitudes.flip(0), torch.zeros(1), magnitudes])


# The largest magnitude of each is 1.
GRIDS: dict[str, Tensor] = {
    "pot4": signed(2.0 ** torch.arange(-6, 1)),
    "pot6": signed(2.0 ** torch.arange(-30, 1)),
    **{name: torch.from_numpy(WEIGHT_FORMATS[name].grid).float() for name in ("apot4", "int4", "apot6", "int6")},
}
GRIDS = {name: grid / grid.max() for name, grid in GRIDS.items()}
CANDIDATES = torch.logspace(-2.0, 2.0, 81, base=2.0)  # scales, as multiples of the row's largest magnitude


def rounded(weight: Tensor, grid: Tensor) -> Tensor:
    """[N, K] on the grid: each row with the scale among `CANDIDATES` of least squared error."""
    midpoints = (grid[1:] + grid[:-1]) / 2
    largest = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    best, chosen = torch.full((len(weight), 1), float("inf")), weight
    for factor in CANDIDATES:
        scale = largest * factor
        levels = grid[torch.bucketize(weight / scale, midpoints)] * scale
        error = (levels - weight).square().sum(dim=1, keepdim=True)
        chosen = torch.where(error < best, levels, chosen)
        best = torch.minimum(error, best)
    return chosen


def load_plain(folder: Path) -> ViT:
    model = load_model(folder)
    if describe_stacks(model):
        raise UserError(f"{folder}: its weights have masks or quantisers; give the folder of a stage `train`")
    return model


@torch.no_grad()
def measure(model: ViT, dataset: data.ImageDataset, grid: Tensor) -> dict[str, float]:
    """Relative error of all weights together, and test accuracy."""
    changed = copy.deepcopy(model)
    error, size = 0.0, 0.0
    for linear in changed.linears().values():
        weight = linear.weight.clone()
        linear.weight.copy_(rounded(weight, grid))
        error += float((linear.weight - weight).square().sum())
        size += float(weight.square().sum())
    hits = predict(changed, dataset.test).argmax(1).numpy() == dataset.test.labels
    return {"weight_error": (error / size) ** 0.5, "accuracy": float(hits.mean())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a run's stage `train`")
    parser.add_argument("--data", choices=("digits", "fashion-mnist", "cifar10"), default="digits")
    parser.add_argument("--out", type=Path, help="also write the results, as JSON")
    given = parser.parse_args()
    try:
        dataset = data.load(DataSettings(name=given.data))
        models = [load_plain(folder) for folder in given.folders]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    table = Table("grid", "levels", "error of weights", "accuracy", "of each model")
    results: dict[str, Any] = {}
    exact = [float((predict(model, dataset.test).argmax(1).numpy() == dataset.test.labels).mean()) for model in models]
    table.add_row("fp32", "", "0", f"{statistics.fmean(exact):.2%}", ", ".join(f"{one:.2%}" for one in exact))
    for name, grid in GRIDS.items():
        each = [measure(model, dataset, grid) for model in models]
        accuracies = [one["accuracy"] for one in each]
        weight_error = statistics.fmean(one["weight_error"] for one in each)
        accuracy = statistics.fmean(accuracies)
        results[name] = {"weight_error": weight_error, "accuracy": accuracy, "accuracies": accuracies}
        listed = ", ".join(f"{one:.2%}" for one in accuracies)
        table.add_row(name, str(len(grid)), f"{weight_error:.4f}", f"{accuracy:.2%}", listed)
    Console(width=120).print(table)
    if given.out is not None:
        about = {"data": given.data, "commit": commit(), "machine": machine_info(), "fp32": exact}
        write_atomic(given.out, (json.dumps(about | {"grids": results}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
