"""Bytes and work of each op, and the profile's arithmetic on times that are given."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lilliput
from lilliput.bench import profile
from lilliput.bench.profile import copy_rates, op_bytes
from lilliput.program.cost import PRODUCTS, macs
from lilliput.program.program import Program
from lilliput.runtime import _lil
from lilliput.runtime.images import ImageSession
from lilliput.runtime.opening import open_image_model


@pytest.fixture
def session(tmp_path: Path, good_file: bytes) -> ImageSession:
    path = tmp_path / "model.lil"
    path.write_bytes(good_file)
    return open_image_model(path)


def test_bytes_of_ops(good_program: Program) -> None:
    by_kind = {op.kind: op_bytes(good_program, op) for op in reversed(good_program.ops)}
    assert by_kind["normalize"] == 16 * 3 + 4 * 16 * 3 + 2 * 4 * 3  # pixels, floats, scale and shift
    assert by_kind["layer_norm"] == 2 * 4 * 5 * 7 + 2 * 2 * 7
    assert by_kind["quantize"] == 4 * 4 * 12 + 4 * 16 + 4 * 4  # the first: 4 windows of 12, padded to 16
    # levels and their scales, outputs, 16 x 16 codes of 4 bits, scale and bias as bf16
    assert by_kind["linear"] == 4 * 16 + 4 * 4 + 4 * 4 * 7 + 128 + 2 * 2 * 7
    assert by_kind["attention"] == 4 * 5 * 24 + 4 * 5 * 8  # its scratch is nobody's


def test_profile_divides_work_by_time(
    session: ImageSession, good_program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(good_program.ops)
    monkeypatch.setattr(profile, "_samples", lambda *_: np.full((3, count), 2000))  # each op takes 2 us
    monkeypatch.setattr(_lil, "peak_macs_per_second", lambda isa: 1e9)
    monkeypatch.setattr(profile, "copy_rates", lambda most: {most: 1e9})
    found = profile.profile(session, good_program, np.zeros((4, 4, 3), np.uint8), 0.0)
    assert found["us"] == 2.0 * count
    assert [op["kind"] for op in found["ops"]] == [op.kind for op in good_program.ops]
    assert sum(op["share"] for op in found["ops"]) == pytest.approx(1.0)
    assert sum(op["macs"] for op in found["ops"]) == macs(good_program)
    linear = next(op for op in found["ops"] if op["kind"] == "linear")
    assert linear["gmacs_per_second"] == linear["macs"] / 2000
    assert linear["roofline_share"] == max(linear["macs"], linear["bytes"]) / 2000
    norm = next(op for op in found["ops"] if op["kind"] == "layer_norm")
    assert norm["gmacs_per_second"] == 0
    products = [op for op in found["ops"] if op["kind"] in PRODUCTS]
    assert found["products"]["share"] == pytest.approx(len(products) / count)
    assert found["products"]["peak_share"] == pytest.approx(sum(op["macs"] for op in products) / len(products) / 2000)


def test_samples_have_a_column_an_op(session: ImageSession, good_program: Program) -> None:
    samples = profile._samples(session, np.zeros((4, 4, 3), np.uint8), 0.0)
    assert samples.shape[1] == len(good_program.ops)
    assert (samples >= 0).all()


def test_copy_rates_reach_the_largest_op() -> None:
    rates = copy_rates(300_000)
    assert list(rates) == [65536, 262144, 1048576]
    assert all(rate > 0 for rate in rates.values())


def test_sessions_give_what_the_profile_needs(session: ImageSession) -> None:
    facts: dict[str, Any] = {"isa": session.isa, "threads": session.num_threads}
    assert facts["threads"] == 1
    assert facts["isa"] in lilliput.runtime.isas()
