"""The ledger of a run: what each pass guaranteed, and after which stages it was checked and held."""

import json
from pathlib import Path
from typing import Any

from lilliput.errors import InputError

PLAN = "stages.json"  # of the run's folder: its stages' folders, each with the key that the record there must have


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Claims of the finished stages of a run's folder, in the order in which they were made, as plain values.

    Each has: claim (its kind), stage (that made it), detail (in words), checked (the stages after which it was found to
    hold; `export` and `evaluate` check the decoded file).

    Raises:
        InputError: a record cannot be read.
    """
    ledger: dict[tuple[str, str, str], list[str]] = {}
    for name, key in _read(folder / PLAN) if (folder / PLAN).is_file() else ():
        path = folder / name / "record.json"
        if not path.is_file():
            continue
        saved = _read(path)
        try:
            if saved["key"] != key:  # of another recipe, or of settings that have changed since
                continue
            stage, entries = saved["record"]["stage"], saved["record"].get("ledger", [])
            for entry in entries:
                words = entry["claim"], entry["stage"], entry["detail"]
                if not all(isinstance(word, str) for word in (stage, *words)):
                    raise TypeError
                ledger.setdefault(words, []).append(stage)
        except (KeyError, TypeError, AttributeError):
            raise _damaged(path) from None
    return [
        {"claim": claim, "stage": stage, "detail": detail, "checked": checked}
        for (claim, stage, detail), checked in ledger.items()
    ]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise _damaged(path) from None


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged; delete it, and the same `lil run` makes it again")
