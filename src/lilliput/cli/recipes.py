"""Commands on a recipe and its runs."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.app import Overrides, Quiet, RunsFolder, app


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A .toml recipe.")],
    overrides: Overrides = None,
    out: RunsFolder = Path("runs"),
    quiet: Quiet = False,
) -> None:
    """Run a recipe stage by stage. The same command resumes an interrupted run and skips what is finished."""
    from lilliput.config import load_recipe

    settings = load_recipe(recipe, overrides)

    from lilliput import pipeline

    typer.echo(pipeline.run(settings, out, quiet=quiet))


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")]) -> None:
    """Make a run's page again from its records.json."""
    from lilliput.report import render
    from lilliput.report.records import read_json

    typer.echo(render(read_json(run_dir / "records.json"), run_dir))
