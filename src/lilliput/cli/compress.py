"""From a checkpoint to a file."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.app import app


@app.command()
def compress(
    checkpoint: Annotated[Path, typer.Argument(metavar="PATH", help="A text encoder in a Hugging Face folder.")],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Texts: one a line, or a .csv or .jsonl.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", metavar="RECIPE", help="A .toml recipe.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Change one setting; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the run's folder goes.")] = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the run's folder.")] = False,
) -> None:
    """Quantize a text encoder to 4 bits on texts without labels, distil it, and measure the file against fp32.

    The same command resumes an interrupted run and skips what is finished.
    """
    from lilliput.config import load_recipe, parse_settings
    from lilliput.text_config import CompressRecipe

    if recipe is None:
        settings = parse_settings({}, "of lil compress", overrides, CompressRecipe)
    else:
        settings = load_recipe(recipe, overrides, CompressRecipe)
    if data is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"path": str(data)})})

    from lilliput.compress_texts import compress as run

    typer.echo(run(checkpoint, settings, out, quiet=quiet))
