"""`lilliput.bench.texts`: lengths one by one, a batch of mixed lengths, mistakes in one line; no look at the times."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lilliput import artifact
from lilliput.bench import engines, texts, turns
from lilliput.bench.profile import op_bytes, profile
from lilliput.bench.terminal import print_bench
from lilliput.bench.texts import Plan, mixed_lengths, mixed_sequences, parse_tokens, random_sequences
from lilliput.errors import UserError
from lilliput.peers.table import OURS, PEERS
from lilliput.program.cost import macs
from lilliput.runtime import _lil
from lilliput.runtime.opening import open_text_model

EAGER = next(peer for peer in PEERS if peer.name == turns.REFERENCE)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "ROUNDS", 1)
    monkeypatch.setattr(engines, "STARTS", 1)
    monkeypatch.setattr(_lil, "peak_macs_per_second", lambda isa: 1e9)


def measure(model: Path, **settings: Any) -> dict[str, Any]:
    with open_text_model(model) as session:
        plan = Plan(**{"model": model, "engines": (), "seconds": 0.02, **settings})
        return texts.measure(session, plan)


def printed(results: dict[str, Any]) -> str:
    out = io.StringIO()
    print_bench(results, Console(file=out, width=200))
    return out.getvalue()


def test_each_length_is_a_run_of_its_own(text_model: Path) -> None:
    steps: list[tuple[int, int]] = []
    with open_text_model(text_model) as session:
        plan = Plan(text_model, (), (5, 24), seconds=0.02, profile=True)
        results = texts.measure(session, plan, lambda done, total: steps.append((done, total)))
        arenas = [session.sequence_arena_bytes(tokens) for tokens in (5, 24)]
    json.dumps(results)
    assert steps == [(number, len(steps)) for number in range(1, len(steps) + 1)]
    assert {"file", "file_bytes", "isa", "machine", "commit", "peer_weights"} <= set(results)
    assert results["file_bytes"] == text_model.stat().st_size
    assert results["task"] == "text-embedding"
    assert [run["tokens"] for run in results["lengths"]] == [5, 24]
    assert [run["mean_tokens"] for run in results["lengths"]] == [5.0, 24.0]
    assert [run["arena_bytes"] for run in results["lengths"]] == arenas
    program = artifact.read(text_model)
    for run, tokens in zip(results["lengths"], (5, 24), strict=True):
        assert run["texts_per_second"] == pytest.approx(1e6 / run["latency_us"])
        assert run["peers"] == {} and run["ratio_to_fastest_peer"] is None
        assert sum(op["macs"] for op in run["profile"]["ops"]) == macs(program, tokens)
    shown = printed(results)
    for text in ("5 tokens", "24 tokens", "Time by op, 24 tokens", "24 x 24", "roofline"):
        assert text in shown, text
    assert "fastest peer" not in shown


def test_beside_a_peer_with_the_same_weights(text_model: Path) -> None:
    results = measure(text_model, engines=(EAGER,), tokens=(9,))
    (run,) = results["lengths"]
    ours, eager = run["engines"]
    assert eager["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert 0.98 < ours["cosine"] < 1.0
    assert "agreement" not in ours
    assert run["fastest_peer"] == EAGER.name
    assert run["ratio_to_fastest_peer"] == run["peers"][EAGER.name] / run["latency_us"]
    shown = printed(results)
    for text in ("Engines, in turns: 9 tokens", "cosine", "the fastest peer, PyTorch eager fp32", "the file's own"):
        assert text in shown, text


def test_a_batch_is_of_mixed_lengths(text_model: Path) -> None:
    results = measure(text_model, batch=20)
    (run,) = results["lengths"]
    sequences = mixed_sequences(artifact.read(text_model), 80, texts.RUN_SEED)
    with open_text_model(text_model) as session:
        for start in range(0, 80, 20):
            session.run(sequences[start : start + 20])
        assert run["arena_bytes"] == len(session._arena) > session.sequence_arena_bytes(256 // 2)
    assert run["tokens"] is None and run["batch"] == 20
    assert run["texts_compared"] == 80
    assert run["mean_tokens"] == np.mean([len(ids) for ids in sequences])
    assert run["most_tokens"] == max(len(ids) for ids in sequences)
    assert run["texts_per_second"] == pytest.approx(20e6 / run["latency_us"])
    assert "20, mixed" in printed(results)


def test_a_checkpoint_of_another_model_is_named(text_model: Path, tmp_path: Path) -> None:
    """Without `transformers` or with another width the peer's row has the reason, and the run goes on."""
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    (run,) = measure(text_model, engines=(EAGER,), tokens=(4,), checkpoint=tmp_path)["lengths"]
    assert run["engines"][0]["name"] == OURS.name and run["latency_us"] > 0
    assert run["engines"][1]["reason"]
    assert run["fastest_peer"] is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"tokens": (8, 25)}, "--tokens: 25; .* takes at most 24"),
        ({"batch": 4}, "--tokens: texts of a batch have mixed lengths; leave --tokens or --batch out"),
        ({"batch": 4, "profile": True, "tokens": None}, "--profile is of one text"),
        ({"checkpoint": Path("/nowhere")}, "--checkpoint /nowhere: has no config.json"),
    ],
)
def test_mistakes(text_model: Path, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        measure(text_model, **({"tokens": (8,)} | settings))


def test_lengths_where_none_are_given(text_model: Path) -> None:
    assert texts.default_tokens(512) == (16, 32, 128, 256)
    assert texts.default_tokens(128) == (16, 32, 128)
    assert texts.default_tokens(9) == (9,)
    assert [run["tokens"] for run in measure(text_model)["lengths"]] == [16]


def test_lengths_are_read() -> None:
    assert parse_tokens("16,32") == parse_tokens("16 32") == parse_tokens(" 16, 32") == (16, 32)
    for wrong in ("", "x", "0", "3,-1", "1.5"):
        with pytest.raises(UserError, match="--tokens"):
            parse_tokens(wrong)


def test_sequences_are_seeded_and_known(text_model: Path) -> None:
    program = artifact.read(text_model)
    first, again, other = (random_sequences(program, np.array([3, 7, 7]), seed) for seed in (0, 0, 1))
    assert [len(ids) for ids in first] == [3, 7, 7]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert max(int(ids.max()) for ids in random_sequences(program, np.array([2000]), 0)) == 49


def test_mixed_lengths_are_those_of_lines() -> None:
    lengths = mixed_lengths(4000, 0)
    assert lengths.min() == 5 and lengths.max() == 128
    assert 33 < lengths.mean() < 37
    assert (lengths == mixed_lengths(4000, 0)).all() and (lengths != mixed_lengths(4000, 1)).any()


def test_ops_of_a_sequence_move_a_row_a_token(text_model: Path) -> None:
    program = artifact.read(text_model)
    by_kind = {op.kind: op_bytes(program, op, 10) for op in reversed(program.ops)}
    # ids, outputs, and of 50 rows of 12 bytes and a scale those that are looked up
    assert by_kind["embed_tokens"] == 10 * 4 + 10 * 24 * 4 + 10 * (12 + 2)
    assert by_kind["layer_norm"] == 2 * 10 * 24 * 4 + 2 * 2 * 24
    assert by_kind["mean_rows"] == 10 * 24 * 4 + 24 * 4
    assert by_kind["normalize_rows"] == 2 * 24 * 4


def test_profile_of_a_sequence(text_model: Path) -> None:
    program = artifact.read(text_model)
    with open_text_model(text_model) as session:
        found = profile(session, program, np.arange(7, dtype=np.uint32), 0.0)
    assert [op["kind"] for op in found["ops"]] == [op.kind for op in program.ops]
    assert found["ops"][0]["shape"] == [7, 24]
    assert sum(op["macs"] for op in found["ops"]) == macs(program, 7)
