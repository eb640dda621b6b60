"""Reading the files of a Hugging Face folder: JSON and safetensors, never pickle. Every error is one line."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lilliput.models.checkpoint import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

LFS_POINTER = b"version https://git-lfs"  # how the text begins that stands for a file where Git LFS has not fetched it
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def check_folder(folder: Path) -> None:
    """Refuse what is no folder.

    Raises:
        CheckpointError: it is a file, or not there: then it may be a name on the hub.
    """
    if folder.is_dir():
        return
    if folder.exists():
        raise CheckpointError(f"model in {folder}: is a file; give the folder that has config.json and {WEIGHTS}")
    hub = "; a model of the hub must be downloaded first (hf download NAME --local-dir FOLDER)"
    raise CheckpointError(f"model in {folder}: there is no such folder{hub if HUB_NAME.fullmatch(str(folder)) else ''}")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"model in {path.parent}: {path.name} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # among them JSONDecodeError and UnicodeDecodeError
        raise CheckpointError(f"model in {path.parent}: {path.name} is not JSON ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """`read_json` of a file that must hold one object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"model in {path.parent}: {path.name} must hold a JSON object")
    return content


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, or of the files that its index names.

    Raises:
        CheckpointError: there are none, only pickled ones, or a file is missing, damaged, or not fetched by Git LFS.
    """
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError) as error:
            if isinstance(error, SafetensorError) and _is_lfs_pointer(path):
                raise CheckpointError(
                    f"model in {folder}: {path.name} is a pointer of Git LFS, no weights; git lfs pull fetches them"
                ) from None
            why = " ".join(str(error).split())[:200]
            raise CheckpointError(f"model in {folder}: {path.name} is missing or damaged ({why})") from None
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        shards = read_object(folder / INDEX).get("weight_map")
        names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise CheckpointError(f"model in {folder}: {INDEX} must map each tensor to a file of the same folder")
        return [folder / name for name in names]
    for name in PICKLES:
        if (folder / name).exists():
            raise CheckpointError(
                f"model in {folder}: {name} is a pickle, which can run any code and is not read; convert it with "
                "AutoModel.from_pretrained(folder).save_pretrained(other, safe_serialization=True)"
            )
    raise CheckpointError(f"model in {folder}: no weights; it must have {WEIGHTS} or {INDEX}")


def _is_lfs_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def one_line(error: ValidationError) -> str:
    """The first thing that is wrong: place, what is allowed, what was given."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{place}: {message}" if place else message
    return f"{place}: {message}, got {str(first['input'])[:80]!r}"
