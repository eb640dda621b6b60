"""The ledger of a run: what each pass guaranteed, and after which stages it was checked and held."""

import json
from pathlib import Path
from typing import Any

from lilliput.errors import InputError


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Claims of the finished stages of a run's folder, in the order in which they were made, as plain values.

    Each has: claim (its kind), stage (that made it), detail (in words), checked (the stages after which it was found to
    hold; `export` and `evaluate` check the decoded file).

    Raises:
        InputError: a record cannot be read.
    """
    ledger: dict[tuple[str, str, str], list[str]] = {}
    for path in sorted(folder.glob("[0-9][0-9]-*/record.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))["record"]
            entries = [(entry["claim"], entry["stage"], entry["detail"]) for entry in record.get("ledger", [])]
            for entry in entries:
                ledger.setdefault(entry, []).append(record["stage"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: damaged; delete it, and the same command does that stage again") from None
    return [
        {"claim": claim, "stage": stage, "detail": detail, "checked": checked}
        for (claim, stage, detail), checked in ledger.items()
    ]
