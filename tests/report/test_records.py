"""Records are checked before a page is made of them."""

from pathlib import Path
from typing import Any

import pytest

from lilliput.errors import UserError
from lilliput.report.records import TrainingStage, parse_records, read_json


def test_stages_are_recognised(records: dict[str, Any]) -> None:
    parsed = parse_records(records)
    assert [stage.stage for stage in parsed.training] == ["train", "prune", "finetune", "quantize"]
    assert all(isinstance(stage, TrainingStage) for stage in parsed.training)
    assert parsed.evaluation.accuracy == 34 / 36
    assert [sample.right for sample in parsed.evaluation.samples].count(False) == 1


def test_fields_of_a_newer_version_are_left_alone(records: dict[str, Any]) -> None:
    records["colour"] = "blue"
    records["stages"][0]["temperature"] = 3
    assert parse_records(records).name == "small"


def test_the_field_at_fault_is_named(records: dict[str, Any]) -> None:
    del records["stages"][0]["test_accuracy"]
    with pytest.raises(UserError, match=r"stages\.0\.train\.test_accuracy: Field required"):
        parse_records(records)


def test_an_unknown_stage_is_named(records: dict[str, Any]) -> None:
    records["stages"][1]["stage"] = "melt"
    with pytest.raises(UserError, match="melt"):
        parse_records(records)


def test_a_run_without_evaluation_has_no_page(records: dict[str, Any]) -> None:
    records["stages"].pop()
    with pytest.raises(UserError, match="evaluate"):
        _ = parse_records(records).evaluation


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("{", "not valid JSON"), ("[1]", "holds a list"), (b"\xff", "JSON")],
)
def test_read_json_names_the_file(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "records.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
