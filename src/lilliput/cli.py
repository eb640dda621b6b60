"""The command `lil`: one thin function a command. What a command needs is imported inside it, so help is quick.

Exit codes: 0 done; 1 the work failed; 2 the user's mistake; 130 interrupted. Errors are one line on stderr, and JSON is
all that stdout gets with `--json`.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lilliput.errors import FailureError, UserError
from lilliput.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

    from lilliput.bench.images import BenchImages
    from lilliput.config import DataSettings
    from lilliput.data import ImageDataset
    from lilliput.runtime.session import Session

PIPE_COLUMNS = 120  # width of tables where no terminal says one


@dataclass
class Options:
    """Options that stand before the command."""

    debug: bool = False


class InterruptedCommandError(Exception):
    """Ctrl-C; the message says what to do next."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Said here, because only here the command is known, and typer would turn it into a bare exit code.
            resume = "; run the same command to resume" if ctx.invoked_subcommand == "run" else ""
            raise InterruptedCommandError(f"interrupted{resume}") from None


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A model.lil.")]
DataPath = Annotated[str | None, typer.Option("--path", help="Where the data lies: an archive or a folder.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        import lilliput

        typer.echo(f"lilliput {lilliput.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Transformers small enough for the device: train, prune, quantize, export one small file, run and measure it."""
    context.obj.debug = debug


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A .toml recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Change one setting; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the run's folder goes.")] = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the run's folder.")] = False,
) -> None:
    """Run a recipe stage by stage. The same command resumes an interrupted run and skips what is finished."""
    from lilliput.config import load_recipe

    settings = load_recipe(recipe, overrides)

    from lilliput import pipeline

    typer.echo(pipeline.run(settings, out, quiet=quiet))


@app.command("eval")
def evaluate(
    model: ModelFile,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME", help="A data set; by default the one it was trained on.")
    ] = None,
    path: DataPath = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every output with the numpy reference, bit for bit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a file's accuracy on the test part of a data set, through the runtime."""
    import lilliput
    from lilliput import artifact, measure

    with lilliput.open(model) as session:
        dataset = _test_data(session, data, path)
        with _progress("evaluate", shown=not as_json) as progress:
            result = measure.evaluate(session, dataset.test.images, dataset.test.labels, progress)
        report = {
            "file": str(model),
            "file_bytes": session.file_bytes,
            "data": dataset.name,
            "part": "test",
            "examples": result.examples,
            "accuracy": result.accuracy,
            "labels": list(dataset.classes),
            "confusion": result.confusion,
        }
        if verify:
            report["identical_to_reference"] = measure.verify(session, artifact.read(model), dataset.test.images)
    if as_json:
        _print_json(report)
        return
    right = round(result.accuracy * result.examples)
    typer.echo(f"{model}: {result.accuracy:.2%} of the {dataset.name} test images ({right:,} of {result.examples:,})")
    if verify:
        compared = report["identical_to_reference"]
        typer.echo(f"runtime and numpy reference: the same bits on all {compared:,} test and random images")


@app.command()
def predict(
    model: ModelFile,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files of any size and mode.")],
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many labels to show for each image.")] = 3,
    as_json: Json = False,
) -> None:
    """Print label and probabilities of images. Their pre-processing is in the file."""
    import numpy as np

    import lilliput
    from lilliput.runtime.preprocess import load_image

    with lilliput.open(model) as session:
        pixels = np.stack([load_image(path, *session.image) for path in images])
        _, probabilities = session.predict(pixels)
        names = session.labels
    answers = []
    for path, row in zip(images, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        likely = [{"label": names[index], "probability": float(row[index])} for index in best]
        answers.append({"image": str(path), **likely[0], "top": likely})
    if as_json:
        _print_json(answers)
        return
    _print_answers(answers)


@app.command()
def inspect(
    target: Annotated[Path, typer.Argument(metavar="MODEL_OR_RUN", help="A model.lil, or the folder of a run.")],
    as_json: Json = False,
) -> None:
    """Account for every byte of a file, count its zeros by decoding it, list its ops and its buffer plan."""
    from lilliput.report import inspect_file

    contents = inspect_file(target / "model.lil" if target.is_dir() else target)
    if as_json:
        _print_json(contents)
        return
    from lilliput.report.terminal import print_inspection

    print_inspection(contents, _console())


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
    import lilliput
    from lilliput import artifact
    from lilliput.bench import run as bench_run
    from lilliput.bench.profile import profile as profile_ops
    from lilliput.peers.table import PEERS

    isa = isa or os.environ.get("LILLIPUT_ISA") or None
    with lilliput.open(model, isa=isa, num_threads=threads) as session:
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
        with _progress("bench", shown=not as_json) as progress:
            results = bench_run.describe(session, plan) | {"images": images.source} | bench_run.measure(plan, progress)
        if profile:
            results["profile"] = profile_ops(session, artifact.read(model), images.run[0], seconds)
    if out is not None:
        write_atomic(out, (json.dumps(results, ensure_ascii=False, indent=1) + "\n").encode())
    if as_json:
        _print_json(results)
        return
    from lilliput.bench.terminal import print_bench

    print_bench(results, _console())


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")]) -> None:
    """Make a run's page again from its records.json."""
    from lilliput.report import render
    from lilliput.report.records import read_json

    typer.echo(render(read_json(run_dir / "records.json"), run_dir))


@app.command("data")
def show_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="digits, fashion-mnist, cifar10 or folder.")],
    path: DataPath = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch the archive first (cifar10).")] = False,
    sheet: Annotated[Path | None, typer.Option("--sheet", metavar="OUT.PNG", help="Write a contact sheet.")] = None,
    size: Annotated[
        tuple[int, int] | None, typer.Option("--size", metavar="HEIGHT WIDTH", help="Resize images to this (folder).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Load a data set and say what is in it."""
    from lilliput import data

    if download:
        path = str(_download(name, path))
    dataset = data.load(_data_settings({"name": name, "path": path, "image_size": size}, name))
    if sheet is not None:
        data.write_contact_sheet(dataset, sheet)
    summary = data.summary(dataset)
    if as_json:
        _print_json(summary)
        return
    height, width, channels = summary["image"]
    typer.echo(f"{name}: images of {height}x{width}x{channels}, {len(dataset.classes)} classes")
    for part in ("train", "validation", "test"):
        typer.echo(f"  {part:<10} {summary[part]:>8,}")
    typer.echo(f"  classes    {', '.join(dataset.classes)}")
    if sheet is not None:
        typer.echo(f"  sheet      {sheet}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Every error is caught here, once."""
    chosen = Options()
    try:
        code = app(args=arguments, prog_name="lil", standalone_mode=False, obj=chosen)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()  # a full disk or a closed pipe shows here at the latest
    except Exception as error:
        if chosen.debug:
            traceback.print_exc()
        code, message = _explain(error)
        if message:
            print(f"lil: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message of an error; the message is printed in one line."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, typer.TyperException):
        return error.exit_code, f"{error.format_message()} (lil --help tells more)"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "lilliput").startswith("lilliput"):
        return 2, f"this needs the package '{error.name}', which is not installed: pip install 'lilliput[train]'"
    if isinstance(error, InterruptedCommandError):
        return 130, str(error)
    if isinstance(error, FailureError):
        return 1, str(error)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; what is still in the buffer must not raise once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    if isinstance(error, OSError):
        return 1, f"{error.filename or 'output'}: {error.strerror or error}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch raises a RuntimeError
        return 1, "out of memory"
    return 1, f"a defect of Lilliput, {type(error).__name__}: {error} (lil --debug ... shows where)"


def _test_data(session: "Session", name: str | None, path: str | None) -> "ImageDataset":
    """The data set to measure on: as the file's provenance says, or another by name; it must fit the model."""
    from lilliput import data

    trained_on = _trained_on(session)
    if name is None and "name" not in trained_on:
        raise UserError("the file does not say which data it was trained on; give --data NAME")
    height, width, channels = session.image
    tree = trained_on if name in (None, trained_on.get("name")) else {"name": name}
    if tree["name"] == "folder":
        tree |= {"image_size": [height, width], "mode": "L" if channels == 1 else "RGB"}
    if path is not None:
        tree |= {"path": path}
    dataset = data.load(_data_settings(tree, tree["name"]))
    if dataset.image_shape != (height, width, channels):
        shapes = "x".join(map(str, dataset.image_shape)), f"{height}x{width}x{channels}"
        raise UserError(f"--data {dataset.name}: its images are {shapes[0]}, the model takes {shapes[1]}")
    if list(dataset.classes) != list(session.labels):
        classes = f"{len(dataset.classes)} classes ({', '.join(dataset.classes[:3])}, ...)"
        labels = f"{len(session.labels)} labels ({', '.join(session.labels[:3])}, ...)"
        raise UserError(f"--data {dataset.name}: its {classes} are not the model's {labels}")
    return dataset


def _bench_images(session: "Session", name: str | None, path: str | None, wanted: bool) -> "BenchImages":
    """Images to measure with: of the file's or the named data set, or random ones where it is not at hand or wanted."""
    from lilliput.bench.images import BenchImages

    if not wanted:
        return BenchImages.random(session.image)
    try:
        dataset = _test_data(session, name, path)
    except (UserError, ModuleNotFoundError) as error:
        if name is not None or path is not None:
            raise
        return BenchImages.random(session.image, f", because {error}")
    return BenchImages.of(dataset.test.images, dataset.train.images, f"test images of {dataset.name}")


def _trained_on(session: "Session") -> dict[str, Any]:
    """The data settings in the file's provenance, which is free text to the format; empty where there are none."""
    provenance = session.metadata.get("provenance")
    settings = provenance.get("data") if isinstance(provenance, dict) else None
    return dict(settings) if isinstance(settings, dict) else {}


def _data_settings(tree: dict[str, Any], name: str) -> "DataSettings":
    from lilliput.config import parse_recipe

    return parse_recipe({"name": "data", "data": tree}, f"for data '{name}'").data


def _download(name: str, folder: str | None) -> Path:
    from lilliput.data.cifar10 import cache_folder, download

    if name != "cifar10":
        raise UserError(f"--download: '{name}' cannot be downloaded; only 'cifar10' can")
    return download(Path(folder) if folder else cache_folder())


def _print_answers(answers: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("image")
    table.add_column("label")
    table.add_column("probability", justify="right")
    for answer in answers:
        for rank, likely in enumerate(answer["top"]):
            style = "bold" if rank == 0 else "dim"
            image = answer["image"] if rank == 0 else ""
            table.add_row(
                escape(image), escape(likely["label"]), f"{likely['probability']:.2%}", style=style, end_section=False
            )
    _console().print(table)


@contextmanager
def _progress(title: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the work lasts, where a terminal is there to see it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _console() -> "Console":
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))
