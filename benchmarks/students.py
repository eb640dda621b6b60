"""A small model that learns from a large one besides the labels, and the same model trained on the labels alone.

    python benchmarks/students.py recipes/digits.toml --seeds 0 1 2 --out benchmarks/results/students-digits.json

The teacher is the fp32 model of the recipe's stage `train`, one a seed; the student is a plain model of the sizes of
--student, trained with the settings of that stage, from the same first weights with and without the teacher, rounded to
int8 by calibration alone, exported and measured on the file. What is finished in --runs is not done again, and its fp32
models are those of `passes.py`.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from blocks import TRAIN_FOLDER
from lilliput import pipeline
from lilliput.config import Recipe, load_recipe, parse_recipe
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from passes import run_from

# What a student learns from its teacher; nothing: the labels alone.
KINDS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "logits": {"weight": 0.9, "temperature": 4.0},
    "logits and relations": {"weight": 0.9, "temperature": 4.0, "attention_weight": 1.0, "value_weight": 1.0},
}
STAGES = ["train", "quantize", "export", "evaluate", "report"]


def run_of(base: Recipe, name: str, seed: int, changes: dict[str, Any]) -> Recipe:
    tree = json.loads(base.model_dump_json(exclude_unset=True)) | {"name": f"{base.name}-{name}-{seed}", "seed": seed}
    tree["stages"] = STAGES
    tree["quantize"] = {"weight_format": "int8", "epochs": 0}
    for stage in ("prune", "finetune"):
        tree.pop(stage, None)
    tree.get("train", {}).pop("distill", None)  # whether there is a teacher is the kind's own
    for stage, settings in changes.items():
        tree[stage] = (tree.get(stage, {}) if stage == "train" else {}) | settings
    return parse_recipe(tree, tree["name"])


def measured(folder: Path) -> dict[str, Any]:
    stages = {record["stage"]: record for record in json.loads((folder / "records.json").read_text())["stages"]}
    return {
        "fp32": stages["train"]["test_accuracy"],
        "file": stages["evaluate"]["accuracy"],
        "file_bytes": (folder / "model.lil").stat().st_size,
    }


def of_seed(base: Recipe, student: dict[str, Any], kinds: list[str], seed: int, runs: Path) -> dict[str, Any]:
    """What the teacher and the student of each kind reach."""
    store = runs / f"{base.name}-fp32-{seed}"
    folder = run_from([TRAIN_FOLDER], store, run_of(base, "teacher", seed, {}), runs)
    results = {"teacher": measured(folder)}
    for kind in kinds:
        settings = KINDS[kind]
        distill = {} if settings is None else {"distill": settings | {"model": str(folder / TRAIN_FOLDER)}}
        changes = {"model": student, "train": distill}
        recipe = run_of(base, "student-" + kind.replace(" ", "-"), seed, changes)
        results[kind] = measured(pipeline.run(recipe, runs))
    return results


def summarize(name: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the seeds, and of a student its difference to the one trained alone, seed by seed."""
    each = [seed[name] for seed in seeds]
    files = [one["file"] for one in each]
    gains = [seed[name]["file"] - seed["alone"]["file"] for seed in seeds]
    return {
        "name": name,
        "accuracies": files,
        "accuracy": statistics.fmean(files),
        "spread": max(files) - min(files),
        "above_alone": None if name in ("teacher", "alone") else gains,
        "fp32": statistics.fmean(one["fp32"] for one in each),
        "file_bytes": statistics.fmean(one["file_bytes"] for one in each),
    }


def show(results: list[dict[str, Any]]) -> Table:
    table = Table("model", "accuracy of the file", "spread", "above the one alone, by seed", "fp32", "bytes")
    for result in results:
        gains = result["above_alone"] or []
        table.add_row(
            result["name"],
            f"{result['accuracy']:.2%}",
            f"{100 * result['spread']:.2f}",
            ", ".join(f"{100 * gain:+.2f}" for gain in gains),
            f"{result['fp32']:.2%}",
            f"{result['file_bytes']:,.0f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/digits.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="as of `lil run`")
    parser.add_argument(
        "--student", type=int, nargs=4, default=[48, 1, 3, 96], metavar=("DIM", "DEPTH", "HEADS", "MLP")
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/passes"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, help="also write the results, as JSON")
    given = parser.parse_args()
    kinds = ["alone", *(kind for kind in given.kinds if kind != "alone")]
    student: dict[str, Any] = dict(zip(("embed_dim", "depth", "num_heads", "mlp_dim"), given.student, strict=True))
    try:
        base = load_recipe(given.recipe, given.set)
        student["patch_size"] = base.model.patch_size
        seeds = [of_seed(base, student, kinds, seed, given.runs) for seed in given.seeds]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    results = [summarize(name, seeds) for name in ("teacher", *kinds)]
    Console(width=120).print(show(results))
    if given.out is not None:
        about = {"recipe": base.name, "seeds": given.seeds, "commit": commit(), "machine": machine_info()}
        about |= {"student": student, "kinds": {kind: KINDS[kind] for kind in kinds}}
        write_atomic(given.out, (json.dumps(about | {"models": results}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
