"""What zero blocks cost and give: accuracy, bytes and speed of one model at several shares of zero blocks.

    python benchmarks/blocks.py recipes/digits.toml --out benchmarks/results/blocks-digits.json

Trains once. Then, for each share, prunes blocks and fine-tunes as the recipe says, quantises, exports, and measures the
file through the runtime. Without zero blocks the stage `prune` is replaced by as much training, so that every file has
seen as many epochs. What is finished in --runs is not done again.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lilliput import artifact, pipeline
from lilliput.bench.images import random_images
from lilliput.config import FinetuneSettings, Recipe, load_recipe, parse_recipe
from lilliput.errors import UserError
from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from lilliput.program.cost import macs, parameter_counts
from lilliput.program.formats import count_blocks, stored_bytes
from lilliput.program.program import Program
from lilliput.runtime.images import ImageSession
from lilliput.runtime.opening import open_image_model
from models import BLOCK

ROUNDS = 20
CHUNK = 8  # images of one timed call: each is timed by its share
TRAIN_FOLDER = "01-train"


def variant(recipe: Recipe, share: float, block: tuple[int, int]) -> Recipe:
    """The recipe with `share` of its blocks zero; at 0, with as many epochs and no pruning."""
    tree = json.loads(recipe.model_dump_json())
    tree["name"] = f"{recipe.name}-blocks-{100 * share:g}"
    tree["stages"] = ["train", "prune", "finetune", "quantize", "export", "evaluate", "report"]
    if share > 0:
        floor = min(recipe.prune.layer_floor, 1 - share)
        tree["prune"] |= {"block": block, "sparsity": share, "layer_floor": floor}
    else:
        tree["stages"].remove("prune")
        tree["finetune"] = {name: tree["prune"][name] for name in FinetuneSettings.model_fields}
        tree["finetune"]["epochs"] += recipe.finetune.epochs
    return parse_recipe(tree, tree["name"])


def make(recipe: Recipe, shares: list[float], block: tuple[int, int], runs: Path) -> list[Path]:
    """Run the variants, which share the first one's training; gives their folders."""
    folders: list[Path] = []
    for share in shares:
        one = variant(recipe, share, block)
        trained = runs / one.name / TRAIN_FOLDER
        if folders and not trained.exists():
            shutil.copytree(folders[0] / TRAIN_FOLDER, trained)
        folders.append(pipeline.run(one, runs))
    return folders


def describe(folder: Path, share: float, block: tuple[int, int]) -> dict[str, Any]:
    """What the file holds and how well it does, from the file and the run's records of it."""
    path = folder / "model.lil"
    program = artifact.read(path)
    stages = {record["stage"]: record for record in json.loads((folder / "records.json").read_text())["stages"]}
    counts = parameter_counts(program)
    return {
        "zero_blocks": share,
        "accuracy": stages["evaluate"]["accuracy"],
        "examples": stages["evaluate"]["examples"],
        "fp32_accuracy_simulated": stages["train"]["test_accuracy"],
        "file_bytes": path.stat().st_size,
        "fp32_bytes": counts.fp32_bytes,
        "weights": counts.weights,
        "zero_weights": counts.sparsity,
        "macs": macs(program),
        "block": list(block),
        "blocks_stored": blocks_stored(program),
        "weight_bytes": sum(tensor.stored_bytes for tensor in program.tensors if tensor.role == "weight"),
        "weight_bytes_in_tiles": sum(
            stored_bytes(tensor.format, "tiles", tensor.rows, tensor.cols)
            for tensor in program.tensors
            if tensor.role == "weight"
        ),
    }


def blocks_stored(program: Program) -> int:
    return sum(count_blocks(tensor.values, tensor.format) for tensor in program.tensors if tensor.role == "weight")


def time_in_turns(folders: list[Path], isa: str | None, threads: int, seconds: float) -> tuple[str, list[float]]:
    """The instruction set, and each file's microseconds an image (median over its calls), measured in turns."""
    sessions = [open_image_model(folder / "model.lil", isa=isa, num_threads=threads) for folder in folders]
    images = random_images(CHUNK, sessions[0].image)
    samples: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, times in zip(sessions, samples, strict=True):
            times += _time_one(session, images, seconds / ROUNDS)
    used = sessions[0].isa
    for session in sessions:
        session.close()
    return used, [float(np.median(times)) for times in samples]


def _time_one(session: ImageSession, images: np.ndarray, seconds: float) -> list[float]:
    times = []
    end = time.perf_counter() + seconds
    session.run(images)  # warms up
    while time.perf_counter() < end:
        start = time.perf_counter_ns()
        session.run(images)
        times.append((time.perf_counter_ns() - start) / 1e3 / len(images))
    return times or _time_one(session, images, seconds)


def show(results: list[dict[str, Any]]) -> Table:
    table = Table("zero blocks", "accuracy", "file bytes", "fp32 / file", "zero weights", "MACs", "us", "times faster")
    for result in results:
        table.add_row(
            f"{result['zero_blocks']:.0%}",
            f"{result['accuracy']:.2%}",
            f"{result['file_bytes']:,}",
            f"{result['fp32_bytes'] / result['file_bytes']:.2f}",
            f"{result['zero_weights']:.1%}",
            f"{result['macs']:,}",
            f"{result['latency_us']:,.1f}",
            f"{results[0]['latency_us'] / result['latency_us']:.2f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/digits.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="as of `lil run`")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.5, 0.75], help="of blocks that are zero")
    parser.add_argument("--block", type=int, nargs=2, default=BLOCK, metavar=("OUTPUTS", "INPUTS"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls a file")
    parser.add_argument("--out", type=Path, help="also write the results, as JSON")
    given = parser.parse_args()
    block = (given.block[0], given.block[1])
    try:
        recipe = load_recipe(given.recipe, given.set)
        folders = make(recipe, given.shares, block, given.runs)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    results = [describe(folder, share, block) for folder, share in zip(folders, given.shares, strict=True)]
    isa, latencies = time_in_turns(folders, given.isa, given.threads, given.seconds)
    for result, latency in zip(results, latencies, strict=True):
        result["latency_us"] = latency
    Console(width=120).print(show(results))
    if given.out is not None:
        about = {"recipe": recipe.name, "commit": commit(), "machine": machine_info(), "isa": isa}
        about |= {"threads": given.threads, "weight_format": recipe.quantize.weight_format}
        write_atomic(given.out, (json.dumps(about | {"models": results}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
