"""`lil bench` on a model of text: what it prints and writes, and one line for every mistake."""

import json
from pathlib import Path

import pytest

from lilliput import cli
from lilliput.bench import engines, turns


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "ROUNDS", 1)
    monkeypatch.setattr(engines, "STARTS", 1)


def lil(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_has_a_run_a_length(text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_file = tmp_path / "results" / "run.json"
    options = ("--json", "--seconds", 0.1, "--tokens", "4,20", "--out", out_file)
    code, out, err = lil(capsys, "bench", text_model, *options)
    assert (code, err) == (0, "")
    results = json.loads(out)
    assert results == json.loads(out_file.read_text())
    assert [run["tokens"] for run in results["lengths"]] == [4, 20]
    assert all(run["batch"] == run["threads"] == 1 and run["latency_us"] > 0 for run in results["lengths"])


def test_a_batch_of_mixed_lengths(text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = lil(capsys, "bench", text_model, "--seconds", 0.1, "--batch", 3, "--threads", 2)
    assert (code, err) == (0, "")
    assert "2 threads, batch 3" in out
    assert "3, mixed" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--tokens", "x"), "--tokens: 'x'"),
        (("--tokens", "25"), "takes at most 24"),
        (("--batch", 2, "--tokens", 4), "--tokens: texts of a batch have mixed lengths"),
        (("--batch", 2, "--profile"), "--profile is of one text"),
        (("--tokens", 4, "--data", "digits"), "--data: "),
        (("--tokens", 4, "--checkpoint", "/nowhere"), "--checkpoint /nowhere: has no config.json"),
    ],
)
def test_mistakes_are_one_line(
    text_model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], text: str
) -> None:
    code, out, err = lil(capsys, "bench", text_model, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1 and text in err


@pytest.mark.parametrize("option", ["--tokens", "--checkpoint"])
def test_a_model_of_images_has_no_use_for_them(
    tmp_path: Path, good_file: bytes, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "model.lil").write_bytes(good_file)
    code, out, err = lil(capsys, "bench", tmp_path / "model.lil", option, "8")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and f"{option}: " in err and "a model of images" in err
