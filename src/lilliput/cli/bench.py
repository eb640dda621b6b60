"""The command `bench`: the speed and the memory of a file."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lilliput.cli.app import DataPath, Json, ModelFile, app, console, print_json, progress_bar
from lilliput.cli.evaluation import test_data
from lilliput.errors import UserError
from lilliput.files import write_atomic

if TYPE_CHECKING:
    from lilliput.bench.images import BenchImages
    from lilliput.runtime.images import ImageSession


@app.command()
def bench(
    model: ModelFile,
    threads: Annotated[int, typer.Option("--threads", min=1, metavar="N", help="Threads of every engine.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Images a call.")] = 1,
    isa: Annotated[
        str | None, typer.Option("--isa", metavar="NAME", help="Force an instruction set; peers too, where they can.")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also the time of each op, against the roofline.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also other runtimes on the same weights, in turns (extra `peers`).")
    ] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, metavar="S", help="Timed calls of each engine.")
    ] = 2.0,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME", help="Whose test images the engines are compared on.")
    ] = None,
    path: DataPath = None,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write the results, as JSON, to this file.")
    ] = None,
) -> None:
    """Measure a file's speed and memory in fresh processes: alone, op by op, and beside other runtimes."""
    from lilliput import artifact
    from lilliput.bench import run as bench_run
    from lilliput.bench.profile import profile as profile_ops
    from lilliput.peers.table import PEERS
    from lilliput.runtime.opening import open_image_model

    isa = isa or os.environ.get("LILLIPUT_ISA") or None
    with open_image_model(model, isa=isa, num_threads=threads) as session:
        session.verify_golden()
        images = _bench_images(session, data, path, wanted=peers)
        plan = bench_run.Plan(
            model=model,
            engines=PEERS if peers else (),
            images=images.run,
            calibration=images.calibration,
            batch=batch,
            threads=threads,
            isa=isa,
            seconds=seconds,
        )
        with progress_bar("bench", shown=not as_json) as progress:
            results = bench_run.describe(session, plan) | {"images": images.source} | bench_run.measure(plan, progress)
        if profile:
            results["profile"] = profile_ops(session, artifact.read(model), images.run[0], seconds)
    if out is not None:
        write_atomic(out, (json.dumps(results, ensure_ascii=False, indent=1) + "\n").encode())
    if as_json:
        print_json(results)
        return
    from lilliput.bench.terminal import print_bench

    print_bench(results, console())


def _bench_images(session: "ImageSession", name: str | None, path: str | None, wanted: bool) -> "BenchImages":
    """Images to measure with: of the file's or the named data set, or random ones where it is not at hand or wanted."""
    from lilliput.bench.images import BenchImages

    if not wanted:
        return BenchImages.random(session.image)
    try:
        dataset = test_data(session, name, path)
    except (UserError, ModuleNotFoundError) as error:
        if name is not None or path is not None:
            raise
        return BenchImages.random(session.image, f", because {error}")
    return BenchImages.of(dataset.test.images, dataset.train.images, f"test images of {dataset.name}")
