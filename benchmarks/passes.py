"""Every compression technique alone, and chains of them, on one data set: what each costs in accuracy and gives in
bytes, work and time. One table and one Pareto plot.

    python benchmarks/passes.py recipes/digits.toml --seeds 0 1 2 --out benchmarks/results/passes-digits.json

For each seed the fp32 model is trained once. Then each variant runs its passes and is quantised and exported; all see
as many epochs ("int4, not trained" without those of `quantize`), because where a variant has no pass the stage
`finetune` trains on in its place. So a variant is to be compared with `int8`, which has been trained as long (but never
has a teacher), before the fp32 model that both began with. Accuracy, bytes, zeros and work are those of the file. What
is finished in --runs is not done again.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.ticker import LogLocator, NullLocator
from rich.console import Console
from rich.table import Table

from blocks import TRAIN_FOLDER, time_in_turns
from lilliput import artifact, pipeline
from lilliput.config import FinetuneSettings, Recipe, load_recipe, parse_recipe
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from lilliput.program.cost import macs, parameter_counts

PRODUCTS = ["export", "evaluate", "report"]
COUNTED = ("parameters", "nonzero_weights", "file_bytes", "packed_bytes", "macs")
FINETUNE_FOLDER = "02-finetune"
TEACHER = {"model": "train", "weight": 0.7, "temperature": 3.0}


@dataclass(frozen=True)
class Variant:
    """What is done between training and export.

    passes: the stages before `quantize`. settings: a diff from the recipe's, by stage. distill: whether every stage
    after `train` learns from the fp32 model too.
    """

    name: str
    passes: tuple[str, ...] = ()
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    distill: bool = False


def _format(name: str, **more: Any) -> dict[str, dict[str, Any]]:
    return {"quantize": {"weight_format": name, **more}}


ZEROS = {"sparsity": 0.6}
SMALLER = {"heads": 0.5, "neurons": 1 / 3}
VARIANTS: tuple[Variant, ...] = (
    # The baselines: nothing but 8 bits, and each format of weights.
    Variant("int8", settings=_format("int8")),
    Variant("int6", settings=_format("int6")),
    Variant("int4", settings=_format("int4")),
    Variant("pot4", settings=_format("pot4")),
    Variant("apot4", settings=_format("apot4")),
    Variant("apot6", settings=_format("apot6")),
    Variant("pot4, learned scales", settings=_format("pot4", scales="learned")),
    Variant("pot4, scales powers of two", settings=_format("pot4", scales="power_of_two")),
    Variant("int4, not trained", settings=_format("int4", epochs=0)),
    Variant("int4, activations 4 bits", settings=_format("int4", activation_bits=4)),
    Variant("int6, activations 6 bits", settings=_format("int6", activation_bits=6)),
    # One pass each, then int8.
    Variant("global pruning", ("prune",), {"prune": ZEROS, **_format("int8")}),
    Variant("pruning layer by layer", ("prune",), {"prune": {**ZEROS, "scope": "layer"}, **_format("int8")}),
    Variant("movement pruning", ("prune",), {"prune": {**ZEROS, "criterion": "movement"}, **_format("int8")}),
    Variant("2 of 4", ("prune",), {"prune": {"pattern": [2, 4]}, **_format("int8")}),
    Variant("blocks", ("prune",), {"prune": {"sparsity": 0.5, "block": [16, 8]}, **_format("int8")}),
    Variant("half the heads, a third of the neurons", ("shrink",), {"shrink": SMALLER, **_format("int8")}),
    Variant("one block less", ("shrink",), {"shrink": {"blocks": 1}, **_format("int8")}),
    Variant("half rank, whitened", ("factorize",), {"factorize": {"budget": 0.5}, **_format("int8")}),
    Variant("half rank, SVD", ("factorize",), {"factorize": {"budget": 0.5, "method": "svd"}, **_format("int8")}),
    Variant("one shared block", ("share",), {"share": {"num_blocks": 1}, **_format("int8")}),
    # Chains.
    Variant("zeros and pot4", ("prune",), {"prune": ZEROS, **_format("pot4")}),
    Variant("zeros and pot4, distilled", ("prune",), {"prune": ZEROS, **_format("pot4")}, distill=True),
    Variant("smaller and pot4, distilled", ("shrink",), {"shrink": SMALLER, **_format("pot4")}, distill=True),
    Variant(
        "smaller, zeros and pot4, distilled",
        ("shrink", "prune"),
        {"shrink": SMALLER, "prune": ZEROS, **_format("pot4")},
        distill=True,
    ),
    Variant(
        "half rank and int4, distilled", ("factorize",), {"factorize": {"budget": 0.5}, **_format("int4")}, distill=True
    ),
)


def recipe_of(base: Recipe, variant: Variant, seed: int) -> Recipe:
    """The recipe of a variant: as many epochs as `prune` and `finetune` of the base have, divided among its passes."""
    tree = json.loads(base.model_dump_json(exclude_unset=True))
    tree["name"] = f"{base.name}-{''.join(c if c.isalnum() else '-' for c in variant.name)}-{seed}"
    tree["seed"] = seed
    tree["stages"] = ["train", *variant.passes, "finetune", "quantize", *PRODUCTS]
    training = base.prune.model_dump(include=set(FinetuneSettings.model_fields), exclude={"distill"})
    for stage in ("prune", "finetune", "quantize"):
        tree.get(stage, {}).pop("distill", None)  # whether there is a teacher is the variant's own
    for stage in variant.passes:
        epochs = max(1, base.prune.epochs // len(variant.passes))
        tree[stage] = (tree.get(stage, {}) if stage == "prune" else training) | {"epochs": epochs}
    if not variant.passes:
        tree["finetune"] = training | {"epochs": base.prune.epochs + base.finetune.epochs}
    tree["export"] = {"packed": True}
    for stage, settings in variant.settings.items():
        tree[stage] = tree.get(stage, {}) | settings
    if "pattern" in tree.get("prune", {}):
        tree["prune"].pop("sparsity", None)
    if variant.distill:
        for stage in (*variant.passes, "finetune", "quantize"):
            tree[stage] = tree.get(stage, {}) | {"distill": TEACHER}
    return parse_recipe(tree, tree["name"])


def make(base: Recipe, variant: Variant, seed: int, runs: Path) -> Path:
    """Run a variant from the fp32 model that the first one of this seed has trained, and without passes of its own from
    that model trained on; gives its folder."""
    recipe = recipe_of(base, variant, seed)
    shared = [TRAIN_FOLDER] if variant.passes else [TRAIN_FOLDER, FINETUNE_FOLDER]
    return run_from(shared, runs / f"{base.name}-fp32-{seed}", recipe, runs)


def run_from(stages: list[str], store: Path, recipe: Recipe, runs: Path) -> Path:
    """Run a recipe with those of its first stages that are in `store` already, and leave there what it did itself."""
    own = runs / recipe.name
    for name in stages:
        if _key(own / name) is None and _key(store / name) is not None:
            _copy(store / name, own / name)
    folder = pipeline.run(recipe, runs)
    for name in stages:
        if _key(store / name) != _key(own / name):
            _copy(own / name, store / name)
    return folder


def _key(folder: Path) -> str | None:
    """Of a finished stage: what it was made from."""
    record = folder / "record.json"
    return str(json.loads(record.read_text())["key"]) if record.exists() else None


def _copy(source: Path, target: Path) -> None:
    """In the place of what is there, whole or not at all."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    shutil.copytree(source, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def describe(folder: Path) -> dict[str, Any]:
    """What a run's file holds and how well it does."""
    path = folder / "model.lil"
    program = artifact.read(path)
    stages = {record["stage"]: record for record in json.loads((folder / "records.json").read_text())["stages"]}
    counts = parameter_counts(program)
    return {
        "accuracy": stages["evaluate"]["accuracy"],
        "fp32_accuracy_simulated": stages["train"]["test_accuracy"],
        "parameters": counts.parameters,
        "nonzero_weights": counts.nonzero_weights,
        "file_bytes": path.stat().st_size,
        "packed_bytes": (folder / "model.lilz").stat().st_size,
        "macs": macs(program),
    }


def summarize(variant: Variant, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies of every seed, with mean and spread; of everything else the mean."""
    accuracies = [run["accuracy"] for run in runs]
    drops = [run["accuracy"] - run["fp32_accuracy_simulated"] for run in runs]
    rest = {name: statistics.fmean(run[name] for run in runs) for name in runs[0] if name != "accuracy"}
    return {
        "name": variant.name,
        "accuracies": accuracies,
        "accuracy": statistics.fmean(accuracies),
        "accuracy_spread": max(accuracies) - min(accuracies),
        "difference_to_fp32": statistics.fmean(drops),
        **rest,
    }


def compare_with_int8(results: list[dict[str, Any]]) -> None:
    """To each result its mean difference to the variant `int8`, if that is there."""
    for int8 in (result for result in results if result["name"] == "int8"):
        for result in results:
            result["difference_to_int8"] = result["accuracy"] - int8["accuracy"]


def on_front(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that no other one beats in both bytes (packed) and accuracy, by bytes."""
    front: list[dict[str, Any]] = []
    for result in sorted(results, key=lambda one: (one["packed_bytes"], -one["accuracy"])):
        if not front or result["accuracy"] > front[-1]["accuracy"]:
            front.append(result)
    return front


def show(results: list[dict[str, Any]]) -> Table:
    columns = (
        "variant",
        "accuracy",
        "spread",
        "to fp32",
        "to int8",
        "parameters",
        "non-zeros",
        "bytes",
        "packed",
        "MACs",
        "us",
    )
    table = Table(*columns)
    best = {result["name"] for result in on_front(results)}
    for result in results:
        table.add_row(
            f"[bold]{result['name']}[/bold]" if result["name"] in best else result["name"],
            f"{result['accuracy']:.2%}",
            f"{100 * result['accuracy_spread']:.2f}",
            f"{100 * result['difference_to_fp32']:+.2f}",
            f"{100 * result['difference_to_int8']:+.2f}" if "difference_to_int8" in result else "",
            *(f"{result[name]:,.0f}" for name in COUNTED),
            f"{result['latency_us']:,.1f}",
        )
    return table


def plot(results: list[dict[str, Any]], fp32: float, path: Path) -> None:
    """Accuracy against packed bytes, each point with its number in the list beside it; a point's area is its latency,
    the line joins the best."""
    matplotlib.use("Agg")
    figure, (axes, names) = pyplot.subplots(1, 2, figsize=(14, 8), width_ratios=(5, 2), layout="constrained")
    front = on_front(results)
    largest = max(result["latency_us"] for result in results)
    lowest = 100 * sorted(result["accuracy"] for result in results)[len(results) // 10] - 2  # those below are put there
    for number, result in enumerate(results, 1):
        x, accuracy = result["packed_bytes"] / 1000, 100 * result["accuracy"]
        y = max(accuracy, lowest)
        color = "tab:blue" if result in front else "0.55"
        if y == accuracy:
            axes.errorbar(x, y, 50 * result["accuracy_spread"], color="0.85", zorder=1)
        axes.scatter(x, y, 160 * result["latency_us"] / largest, color=color, zorder=2)
        label = f"{number}" if y == accuracy else f"{number}: {accuracy:.0f} %"
        axes.annotate(label, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=9)
        weight = "bold" if result in front else "normal"
        names.text(0, 1 - number / (len(results) + 1), f"{number}  {result['name']}", fontsize=10, weight=weight)
    names.axis("off")
    axes.plot([one["packed_bytes"] / 1000 for one in front], [100 * one["accuracy"] for one in front], color="tab:blue")
    axes.axhline(100 * fp32, color="tab:orange", linestyle="--")
    axes.text(0.01, 100 * fp32, "fp32", color="tab:orange", transform=axes.get_yaxis_transform(), va="bottom")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("packed file, kB")
    axes.set_ylabel("test accuracy of the file, %")
    axes.set_title("Compression passes (area of a point: latency; bars: spread over the seeds)")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/digits.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="as of `lil run`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants by name; all by default")
    parser.add_argument("--runs", type=Path, default=Path("runs/passes"), help="where the runs are kept")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls a file")
    parser.add_argument("--out", type=Path, help="also write the results, as JSON, and the plot beside it, as PNG")
    given = parser.parse_args()
    wanted = [variant for variant in VARIANTS if given.only is None or variant.name in given.only]
    try:
        base = load_recipe(given.recipe, given.set)
        unknown = set(given.only or ()) - {variant.name for variant in VARIANTS}
        if unknown:
            raise UserError(f"--only: no variant {sorted(unknown)[0]!r}; there are {[v.name for v in VARIANTS]}")
        folders = [[make(base, variant, seed, given.runs) for seed in given.seeds] for variant in wanted]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    runs = [[describe(folder) for folder in group] for group in folders]
    results = [summarize(variant, group) for variant, group in zip(wanted, runs, strict=True)]
    compare_with_int8(results)
    isa, latencies = time_in_turns([group[0] for group in folders], None, 1, given.seconds)
    for result, latency in zip(results, latencies, strict=True):
        result["latency_us"] = latency
    Console(width=140).print(show(results))
    if given.out is not None:
        about = {"recipe": base.name, "seeds": given.seeds, "commit": commit(), "machine": machine_info(), "isa": isa}
        write_atomic(given.out, (json.dumps(about | {"variants": results}, indent=1) + "\n").encode())
        fp32 = statistics.fmean(result["fp32_accuracy_simulated"] for result in results)
        plot(results, fp32, given.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
