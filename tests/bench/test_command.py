"""`lil bench`: what it prints and writes, and one line for every mistake."""

import json
from pathlib import Path
from typing import Any

import pytest

from lilliput import cli
from lilliput.bench import engines, terminal, turns
from lilliput.bench.terminal import print_bench
from lilliput.peers import table
from lilliput.peers.table import PEERS
from lilliput.runtime import _lil


@pytest.fixture
def model(tmp_path: Path, good_file: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(turns, "ROUNDS", 1)
    monkeypatch.setattr(engines, "STARTS", 1)
    path = tmp_path / "model.lil"
    path.write_bytes(good_file)
    return path


def lil(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_has_the_promised_fields(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out_file = tmp_path / "results" / "run.json"
    code, out, err = lil(capsys, "bench", model, "--json", "--seconds", 0.1, "--batch", 2, "--out", out_file)
    assert (code, err) == (0, "")
    results = json.loads(out)
    assert results == json.loads(out_file.read_text())
    assert results["file"] == str(model)
    assert results["file_bytes"] == model.stat().st_size
    assert (results["threads"], results["batch"]) == (1, 2)
    assert {"latency_us", "peers", "ratio_to_fastest_peer", "machine", "commit", "isa", "arena_bytes"} <= set(results)
    assert results["cold_start_ms"] > 0
    assert set(results["memory"]) >= {"rss_bytes", "pss_bytes"}
    assert "cpu" in results["machine"]


def test_tables(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    missing = table.Engine("Nobody's engine", "nobody")
    monkeypatch.setattr(table, "PEERS", (missing, PEERS[0]))
    monkeypatch.setattr(_lil, "peak_macs_per_second", lambda isa: 1e9)
    code, out, err = lil(capsys, "bench", model, "--seconds", 0.1, "--peers", "--profile")
    assert (code, err) == (0, "")
    fastest = "as fast as the fastest peer (1 of 2 ran), PyTorch eager fp32"
    for text in ("latency:", "Engines, in turns", fastest, "Time by op", "roofline"):
        assert text in out, text
    assert "Nobody's engine does not run: the package 'lilliput.peers.nobody' is not installed" in out
    assert "random images" in out


def test_where_all_peers_ran_they_are_not_counted() -> None:
    assert terminal._that_ran({"peers": {"one": 1.0, "two": 2.0}}) == ""
    assert terminal._that_ran({"peers": {"one": 1.0, "two": None, "three": 3.0}}) == " (2 of 3 ran)"


@pytest.mark.parametrize(("share", "said"), [(0.99, False), (None, False), (1.3, True)])
def test_more_than_the_roofline_is_explained(share: float | None, said: bool) -> None:
    products = {"share": 0.5, "gmacs_per_second": 1.0, "peak_share": 0.5}
    profile = {"roofline": {"macs_per_second": 1e9, "bytes_per_second": {}}, "products": products}
    text = terminal._roofline(profile | {"ops": [{"roofline_share": 0.5}, {"roofline_share": share}]})
    assert (terminal.ABOVE_ROOFLINE in text) == said


def test_memory_that_is_not_known_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    numbers = dict.fromkeys(("latency_us", "latency_p5_us", "latency_p95_us", "images_per_second"), 1.0)
    results: dict[str, Any] = numbers | {"file": "[m].lil", "threads": 2, "batch": 1, "isa": "scalar", "peers": {}}
    results |= {"machine": {"cpu": "X"}, "commit": None, "cold_start_ms": 1.0, "file_bytes": 1, "arena_bytes": 1}
    print_bench(results | {"memory": None}, Console(width=200))
    assert "not known on this system" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--threads", 0), "--threads"),
        (("--batch", 0), "--batch"),
        (("--batch", 65_537), "'--batch': Input should be less than or equal to 65536"),
        (("--seconds", 0), "--seconds"),
        (("--isa", "mmx"), "mmx"),
        (("--peers", "--data", "nothing"), "nothing"),
        (("--peers", "--data", "digits"), "its images are 8x8x1"),
    ],
)
def test_bad_options_are_one_line(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], text: str
) -> None:
    code, out, err = lil(capsys, "bench", model, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert text in err


def test_a_file_that_is_no_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.lil").write_bytes(b"nothing")
    code, _, err = lil(capsys, "bench", tmp_path / "model.lil")
    assert code == 2
    assert err.count("\n") == 1
