"""Commands that pack a file for transport, and unpack it."""

from pathlib import Path
from typing import Annotated

import typer

from lilliput.cli.app import ModelFile, app
from lilliput.errors import UserError
from lilliput.files import write_atomic

MODEL_SUFFIX = ".lil"
OutFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The file to write. By default beside MODEL.")
]


@app.command()
def pack(model: ModelFile, out: OutFile = None) -> None:
    """Write a model.lilz: the same model in fewer bytes, for transport. Commands take it as it is, and unpack it into
    memory each time."""
    from lilliput import artifact

    data = artifact.read_bytes(model)
    packed = artifact.pack(data, str(model))
    out = _place(model, out, artifact.SUFFIX)
    write_atomic(out, packed)
    share = len(packed) / len(data)
    typer.echo(f"{out}: {len(packed):,} bytes, {share:.1%} of the {len(data):,} of {model}")


@app.command()
def unpack(
    packed: Annotated[Path, typer.Argument(metavar="MODEL", help="A model.lilz.")],
    out: OutFile = None,
) -> None:
    """Write the model.lil that a model.lilz holds: the very bytes that were packed, which can be run where they lie."""
    from lilliput import artifact

    data = artifact.read_bytes(packed)
    content = artifact.unpack(data, str(packed))  # whose message comes first where a plain file is given
    artifact.from_bytes(content, str(packed))  # a file that is not valid is not written
    out = _place(packed, out, MODEL_SUFFIX)
    write_atomic(out, content)
    typer.echo(f"{out}: {len(content):,} bytes, from the {len(data):,} of {packed}")


def _place(source: Path, out: Path | None, suffix: str) -> Path:
    """Where the output goes, which must not be where the input lies."""
    place = out or source.with_suffix(suffix)
    if place.exists() and place.samefile(source):
        raise UserError(f"{place}: would be written over what is read; give another file as --out")
    return place
