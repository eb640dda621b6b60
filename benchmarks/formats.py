"""PoT-4 against int8, and zero blocks, at growing sizes: random models of each kind, measured in turns.

    python benchmarks/formats.py --out benchmarks/results/formats.json

Answers two questions: at which size 4-bit weights are quicker than 8-bit ones (where the weights leave the caches), and
what 50 % and 75 % zero blocks give.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lilliput import artifact
from lilliput.bench.engines import EngineProcess
from lilliput.bench.images import random_images
from lilliput.config import ModelSettings, QuantizeSettings
from lilliput.files import write_atomic
from lilliput.measure import commit, machine_info
from lilliput.peers.table import OURS, Job
from lilliput.program.cost import macs, parameter_counts
from lilliput.runtime import isas
from models import BLOCK, random_model

IMAGE = (32, 32, 3)
ROUNDS = 10


@dataclass(frozen=True)
class Kind:
    """One model: width (the MLP has twice that), number of blocks, weight format, share of zero blocks."""

    width: int
    depth: int
    weight_format: str
    zero_blocks: float


def kinds(sizes: list[tuple[int, int]]) -> list[Kind]:
    """For each (width, depth): int8, PoT-4, and PoT-4 with half and three quarters of its blocks zero."""
    ways = (("int8", 0.0), ("pot4", 0.0), ("pot4", 0.5), ("pot4", 0.75))
    return [Kind(width, depth, *way) for width, depth in sizes for way in ways]


def write_model(kind: Kind, path: Path) -> dict[str, Any]:
    settings = ModelSettings(
        embed_dim=kind.width, depth=kind.depth, num_heads=max(1, kind.width // 32), mlp_dim=2 * kind.width
    )
    quantize = QuantizeSettings.model_validate({"weight_format": kind.weight_format})
    program = random_model(settings, quantize, IMAGE, kind.zero_blocks)
    file_bytes = artifact.write(program, path)
    return {"file_bytes": file_bytes, "macs": macs(program), "weights": parameter_counts(program).weights}


def measure(kinds_of_a_size: list[Kind], isa: str | None, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Time the models of one size in turns, each in its own process; one result a kind."""
    with tempfile.TemporaryDirectory(prefix="lilliput-formats-") as name:
        folder = Path(name)
        images = folder / "images.npy"
        np.save(images, random_images(8, IMAGE))
        results, processes = [], []
        try:
            for number, kind in enumerate(kinds_of_a_size):
                path = folder / f"{number}.lil"
                results.append(asdict(kind) | write_model(kind, path))
                job = Job(OURS.family, OURS.variant, str(path), name, str(images), str(images), 1, threads, isa)
                processes.append(EngineProcess(OURS, job, folder / "log"))
                processes[-1].ask("start", files=[str(path)], settings=None)
            samples: list[list[int]] = [[] for _ in processes]
            for _ in range(ROUNDS):
                for process, times in zip(processes, samples, strict=True):
                    times += process.ask("time", seconds=seconds / ROUNDS)["nanoseconds"]
        finally:
            for process in processes:
                process.close()
    for result, times in zip(results, samples, strict=True):
        result["latency_us"] = float(np.median(times)) / 1e3
        result["gmacs_per_second"] = result["macs"] / result["latency_us"] / 1e3
    return results


def show(results: list[dict[str, Any]]) -> Table:
    table = Table("width", "depth", "weights", "zero blocks", "file bytes", "us", "GMAC/s", "int8's time over it")
    for result in results:
        same = {"width": result["width"], "depth": result["depth"], "weight_format": "int8"}
        int8 = next(other for other in results if same.items() <= other.items())
        table.add_row(
            str(result["width"]),
            str(result["depth"]),
            result["weight_format"],
            f"{result['zero_blocks']:.0%}",
            f"{result['file_bytes']:,}",
            f"{result['latency_us']:,.1f}",
            f"{result['gmacs_per_second']:.0f}",
            f"{int8['latency_us'] / result['latency_us']:.2f}",
        )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["128x3", "256x4", "512x4", "1024x4"], metavar="WIDTHxDEPTH")
    parser.add_argument("--isa")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls a model")
    parser.add_argument("--out", type=Path, help="also write the results, as JSON")
    given = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in given.sizes]
    results: list[dict[str, Any]] = []
    for width, depth in sizes:
        results += measure(kinds([(width, depth)]), given.isa, given.threads, given.seconds)
    Console(width=120).print(show(results))
    if given.out is not None:
        isa = given.isa or os.environ.get("LILLIPUT_ISA") or isas()[-1]
        about = {"commit": commit(), "machine": machine_info(), "isa": isa, "threads": given.threads, "block": BLOCK}
        write_atomic(given.out, (json.dumps(about | {"models": results}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
