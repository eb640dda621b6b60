"""The command `bench`: the speed and the memory of a file."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lilliput.cli.app import DataPath, Json, ModelFile, app, console, print_json, progress_bar
from lilliput.cli.evaluation import refuse_options, test_data
from lilliput.errors import UserError
from lilliput.files import write_atomic

if TYPE_CHECKING:
    from lilliput.bench.images import BenchImages
    from lilliput.bench.texts import Plan
    from lilliput.bench.turns import Progress
    from lilliput.runtime.images import ImageSession

MAX_BATCH = 65_536  # a call of so many is measured in seconds; more would only fill memory


@app.command()
def bench(
    model: ModelFile,
    threads: Annotated[int, typer.Option("--threads", min=1, metavar="N", help="Threads of every engine.")] = 1,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=MAX_BATCH, metavar="N", help="Images or texts a call.")
    ] = 1,
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
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", metavar="N,...", help="Lengths of texts; by default 16,32,128,256 as far as it takes them."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", metavar="DIR", help="Hugging Face folder for the peers, of a model of text."),
    ] = None,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write the results, as JSON, to this file.")
    ] = None,
) -> None:
    """Measure a file's speed and memory in fresh processes: alone, op by op, and beside other runtimes.

    A model of images runs --batch images a call. A model of text runs one text of each length of --tokens, or with
    --batch so many texts of mixed lengths.
    """
    import lilliput
    from lilliput.bench.texts import Plan, measure, parse_tokens
    from lilliput.peers.table import PEERS
    from lilliput.runtime.images import ImageSession

    isa = isa or os.environ.get("LILLIPUT_ISA") or None
    plan = Plan(model, PEERS if peers else (), batch=batch, threads=threads, isa=isa, seconds=seconds, profile=profile)
    with (
        lilliput.open(model, isa=isa, num_threads=threads) as session,
        progress_bar("bench", shown=not as_json) as progress,
    ):
        session.verify_golden()
        if isinstance(session, ImageSession):
            refuse_options(model, "images", {"--tokens": tokens, "--checkpoint": checkpoint})
            results = _measure_images(session, plan, _bench_images(session, data, path, wanted=peers), progress)
        else:
            refuse_options(model, "text", {"--data": data, "--path": path})
            lengths = None if tokens is None else parse_tokens(tokens)
            results = measure(session, replace(plan, tokens=lengths, checkpoint=checkpoint), progress)
    if out is not None:
        write_atomic(out, (json.dumps(results, ensure_ascii=False, indent=1) + "\n").encode())
    if as_json:
        print_json(results)
        return
    from lilliput.bench.terminal import print_bench

    print_bench(results, console())


def _measure_images(
    session: "ImageSession", plan: "Plan", images: "BenchImages", progress: "Progress"
) -> dict[str, Any]:
    from lilliput import artifact
    from lilliput.bench import run
    from lilliput.bench.profile import profile

    settings = run.Plan(
        plan.model, plan.engines, images.run, images.calibration, plan.batch, plan.threads, plan.isa, plan.seconds
    )
    results = run.describe(session, settings) | {"images": images.source} | run.measure(settings, progress)
    if plan.profile:
        results["profile"] = profile(session, artifact.read(plan.model), images.run[0], plan.seconds)
    return results


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
