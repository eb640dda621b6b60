"""The command `data`, and data sets as other commands name them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lilliput.cli.app import DataPath, Json, app, print_json
from lilliput.errors import UserError

if TYPE_CHECKING:
    from lilliput.config import DataSettings


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
    dataset = data.load(data_settings({"name": name, "path": path, "image_size": size}, name))
    if sheet is not None:
        data.write_contact_sheet(dataset, sheet)
    summary = data.summary(dataset)
    if as_json:
        print_json(summary)
        return
    height, width, channels = summary["image"]
    typer.echo(f"{name}: images of {height}x{width}x{channels}, {len(dataset.classes)} classes")
    for part in ("train", "validation", "test"):
        typer.echo(f"  {part:<10} {summary[part]:>8,}")
    typer.echo(f"  classes    {', '.join(dataset.classes)}")
    if sheet is not None:
        typer.echo(f"  sheet      {sheet}")


def data_settings(tree: dict[str, Any], name: str) -> "DataSettings":
    from lilliput.config import parse_recipe

    return parse_recipe({"name": "data", "data": tree}, f"for data '{name}'").data


def _download(name: str, folder: str | None) -> Path:
    from lilliput.data.cifar10 import cache_folder, download

    if name != "cifar10":
        raise UserError(f"--download: '{name}' cannot be downloaded; only 'cifar10' can")
    return download(Path(folder) if folder else cache_folder())
