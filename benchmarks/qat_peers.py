"""Quantisation-aware training at 4 bits beside Brevitas' and torchao's: the same fp32 model, data, loop and epochs.

    pip install brevitas torchao
    python benchmarks/qat_peers.py recipes/digits.toml --seeds 0 1 2 --out benchmarks/results/qat-digits.json

Each engine starts from the fp32 model of the recipe's stage `train` and trains with the settings of its stage
`quantize`, weights in 4 bits, activations in 8, everything else its default. Ours is measured on the file, through the
runtime; theirs simulate, as neither ends in a file of 4-bit codes for such a model. Brevitas: `QuantLinear`, 4 bits a
channel with scales from statistics, 8-bit inputs. torchao: `IntxFakeQuantizeConfig` of int4 in groups of 32 (its least
that divides the layers), int8 inputs a token. Neither quantises attention's products, tokens, positions or biases.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from blocks import TRAIN_FOLDER
from lilliput import data
from lilliput.config import Recipe, load_recipe, parse_recipe
from lilliput.data import ImageDataset
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from lilliput.models.checkpoint import load_model
from lilliput.models.layers import Linear
from lilliput.models.vit import ViT
from lilliput.train.images import ImageClassification, predict
from lilliput.train.loop import Task, derive_seed, fit
from passes import run_from

GROUP = 32


class Converted(Linear):
    """Another engine's layer in the place of ours, of which the model asks for quantisers and finds none."""

    def __init__(self, layer: nn.Module) -> None:
        nn.Module.__init__(self)  # no weight of its own
        self.layer = layer
        self.register_buffer("input_multiplier", None)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layer(input)
        return output


def with_brevitas(model: ViT) -> ViT:
    """Every `Linear` as a `QuantLinear` with the same weights."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    def convert(linear: Linear) -> nn.Module:
        layer = qnn.QuantLinear(
            linear.in_features,
            linear.out_features,
            bias=True,
            weight_quant=Int8WeightPerChannelFloat.let(bit_width=4),
            input_quant=Int8ActPerTensorFloat,
        )
        layer.weight.data.copy_(linear.weight.data)
        layer.bias.data.copy_(linear.bias.data)
        converted: nn.Module = layer
        return converted

    return _replaced(model, convert)


def with_torchao(model: ViT) -> ViT:
    """Every `Linear` whose inputs divide by the group as a `FakeQuantizedLinear`; the others stay fp32."""
    import torch
    from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig

    four_bits: torch.dtype = vars(torch)["int4"]  # torch's annotations lack it
    weights = IntxFakeQuantizeConfig(four_bits, group_size=GROUP)
    inputs = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)

    def convert(linear: Linear) -> nn.Module:
        plain = nn.Linear(linear.in_features, linear.out_features)
        plain.load_state_dict({"weight": linear.weight.data, "bias": linear.bias.data})
        if linear.in_features % GROUP:
            return plain
        converted: nn.Module = FakeQuantizedLinear.from_linear(plain, inputs, weights)
        return converted

    return _replaced(model, convert)


def _replaced(model: ViT, convert: Callable[[Linear], nn.Module]) -> ViT:
    """A copy of the model with converted layers."""
    changed = copy.deepcopy(model)
    for name, linear in list(changed.linears().items()):
        parent, _, child = name.rpartition(".")
        setattr(changed.get_submodule(parent), child, Converted(convert(linear)))
    return changed


ENGINES: dict[str, tuple[str, Callable[[ViT], ViT]]] = {
    "Brevitas int4": ("brevitas", with_brevitas),
    "torchao int4": ("torchao", with_torchao),
}
OURS = ("int4", "pot4", "apot4")


def train_theirs(recipe: Recipe, dataset: ImageDataset, fp32: ViT, make: Callable[[ViT], ViT]) -> float:
    """Test accuracy, simulated, after as much training as our stage `quantize` does."""
    model = make(fp32)
    objective = ImageClassification(dataset, recipe.augment, derive_seed(recipe.seed, 3, 1))
    with tempfile.TemporaryDirectory() as folder:
        fit(model, recipe.quantize, Task(objective, Path(folder) / "checkpoint.safetensors"))
    return float((predict(model, dataset.test).argmax(1).numpy() == dataset.test.labels).mean())


def of_seed(base: Recipe, seed: int, runs: Path) -> dict[str, float]:
    """Test accuracy of each engine, and of the fp32 model that all start from."""
    accuracies: dict[str, float] = {}
    folder = runs
    for weight_format in OURS:
        tree = json.loads(base.model_dump_json(exclude_unset=True)) | {"name": f"{base.name}-qat-{seed}", "seed": seed}
        tree["stages"] = ["train", "quantize", "export", "evaluate", "report"]
        tree["quantize"] = tree.get("quantize", {}) | {"weight_format": weight_format}
        tree["quantize"] |= {"distill": None, "precision": "fp32"}  # bf16 would round the peers' products, not ours
        recipe = parse_recipe(tree, tree["name"])
        folder = run_from([TRAIN_FOLDER], runs / f"{base.name}-fp32-{seed}", recipe, runs)
        stages = {stage["stage"]: stage for stage in json.loads((folder / "records.json").read_text())["stages"]}
        accuracies["fp32"] = stages["train"]["test_accuracy"]
        accuracies[f"Lilliput {weight_format}"] = stages["evaluate"]["accuracy"]
    dataset, fp32 = data.load(base.data), load_model(folder / "01-train")
    for name, (_, make) in ENGINES.items():
        Console(stderr=True).print(f"{name}, seed {seed} ...")
        accuracies[name] = train_theirs(recipe, dataset, fp32, make)
    return accuracies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/digits.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="as of `lil run`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/passes"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, help="also write the results, as JSON")
    given = parser.parse_args()
    try:
        base = load_recipe(given.recipe, given.set)
        seeds = [of_seed(base, seed, given.runs) for seed in given.seeds]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    table = Table("engine", "mean accuracy", "of each seed")
    results: dict[str, Any] = {}
    for name in seeds[0]:
        each = [accuracies[name] for accuracies in seeds]
        results[name] = {"mean": statistics.fmean(each), "seeds": each}
        table.add_row(name, f"{statistics.fmean(each):.2%}", ", ".join(f"{one:.2%}" for one in each))
    Console(width=120).print(table)
    if given.out is not None:
        versions = {package: version(package) for package, _ in ENGINES.values()}
        about = {"recipe": base.name, "seeds": given.seeds, "commit": commit(), "machine": machine_info()}
        write_atomic(
            given.out, (json.dumps(about | {"versions": versions, "engines": results}, indent=1) + "\n").encode()
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
