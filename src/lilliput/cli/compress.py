"""From a checkpoint to a file."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.app import Overrides, Quiet, RunsFolder, app


@app.command()
def compress(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="PATH", help="A text encoder or image model in a Hugging Face folder.")
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Texts: a file, one a line, or a .csv or .jsonl. Images: a folder, or the name of a data set.",
        ),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", metavar="RECIPE", help="A .toml recipe.")] = None,
    overrides: Overrides = None,
    out: RunsFolder = Path("runs"),
    quiet: Quiet = False,
) -> None:
    """Quantize a model to 4 bits on texts or images without labels, distil it, and measure the file against fp32.

    The same command resumes an interrupted run and skips what is finished.
    """
    from lilliput.compress_checkpoint import compress as run
    from lilliput.compress_checkpoint import read_checkpoint
    from lilliput.config import load_recipe, parse_settings

    read = read_checkpoint(checkpoint)
    if recipe is None:
        settings = parse_settings({}, "of lil compress", overrides, read.recipe_kind)
    else:
        settings = load_recipe(recipe, overrides, read.recipe_kind)
    if data is not None:
        settings = settings.with_data(data)
    typer.echo(run(read, settings, out, quiet=quiet))
