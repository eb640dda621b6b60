"""Opening in C: what is good is accepted at any address; what is not is refused, with the status that says why."""

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lilliput import artifact
from lilliput.errors import ArtifactError
from lilliput.program import reference
from lilliput.program.builder import ProgramBuilder
from lilliput.program.program import Program
from lilliput.program.validation import num_token_ids
from lilliput.runtime._lil import ALIGNMENT, Model

if TYPE_CHECKING:
    from tests.hostile_files import HostileFile

# Name of a hostile file -> what C says of it; the first that matches.
SAYS = (
    (r"sequence-header-", "a header field"),
    (r"sequence-arena-", "the arena's size"),
    (r"sequence-buffer-", r"a buffer's .* is not allowed \(buffer \d+\)"),
    (r"sequence-constant-", r"not finite, or a scale below 0 \(tensor \d+\)"),
    (r"(sequence|table-image)-kind-", r"unknown kind, or of the other kind of program \(op \d+\)"),
    (r"sequence-slot-", r"names a record that is not there.* \(op \d+\)"),
    (r"sequence-type-", r"has not the type that its kind takes \(op \d+\)"),
    (r"(sequence|table-image)-attribute-", r"attribute is out of range \(op \d+\)"),
    (r"(sequence|table-image)-shape-", r"shapes do not fit its kind \(op \d+\)"),
    (r"sequence-overlap", r"still needed \(op \d+\)"),
    (r"sequence-golden-dirty-gap", r"a gap .* is not all zero bytes \(section 6\)"),
    (r"sequence-golden-", r"a section's .*\(section 6\)"),
    (r"(sequence|table-image)-vocabulary", "the vocabulary's sizes, ends or merges"),
    (r"sequence-cut-", "truncated"),
    (r"table-image-version-1", r"unknown kind, or of the other kind of program \(op 1\)"),
    (r"levels-image-version-1", r"unknown kind, or of the other kind of program \(op 2\)"),
    (r"levels-image-type-", r"has not the type that its kind takes \(op 2\)"),
    (r"sequence-code-", r"code that has no level.* \(tensor \d+\)"),
    (r"no-scales-|newer-", "another version of the format; this runtime reads versions 1 and 2"),
    (r"table-image-max-tokens", r"a buffer's .* is not allowed \(buffer 0\)"),
    (r"empty|cut-|size-larger|size-all-ones", "truncated"),
    (r"foreign|text-mode", "not a Lilliput model file"),
    (r"byte-appended|size-smaller|size-zero", "bytes follow the end"),
    (r"version-", "another version of the format; this runtime reads versions 1 and 2"),
    (r"crc|byte-flipped", "altered: the checksum"),
    (r"header-|sections-|(in|out)put-out-of-range|buffer-none", "a header field"),
    (r"arena-|buffer-offset-beyond|buffer-overlap-partly|buffer-scratch-overlaps", "the arena's size|still needed"),
    (r".*dirty-gap", r"a gap before or within a section is not all zero bytes \(section \d\)"),
    (
        r"(\w+)-section-|too-many-(buffers|ops)|bytes-after|golden-|metadata-count|constants-unclaimed",
        r"a section's .*\(section \d\)",
    ),
    (r"buffer-dtype-other", r"has not the type that its kind takes \(op 0\)"),
    (r"buffer-(input-)?rows-lie|buffer-levels-unpadded", r"shapes do not fit its kind \(op \d+\)"),
    (r"buffer-overlap", r"writes over a buffer that is still needed \(op \d+\)"),
    (r"buffer-|(in|out)put-", r"a buffer's .* is not allowed \(buffer \d+\)"),
    (r"index-", r"index of stored blocks is not in order, or one of them is all zero \(tensor \d+\)"),
    (r"tensor-cols-lie", r"shapes do not fit its kind \(op 0\)"),
    (r"tensor-none", r"names a record that is not there.* \(op 0\)"),
    (r"tensor-|constants-cut", r"a tensor's .* is not allowed \(tensor \d+\)"),
    (
        r"constant-\w+-(unused-code|row-padding|col-padding|rows-|\w*-?padding)",
        r"code that has no level.* \(tensor \d+\)",
    ),
    (r"constant-", r"not finite, or a scale below 0 \(tensor \d+\)"),
    (r"flow-scratch-read", r"reads scratch.* \(op \d+\)"),
    (r"flow-(output-)?never-written|flow-no-ops", r"a buffer that no op writes \(buffer \d+\)"),
    (r"flow-", r"before it is written, or writes one that is written already \(op \d+\)"),
    (r"unfold-stride-all-ones", r"shapes do not fit its kind \(op 1\)"),
    (r"normalize-kind", r"unknown kind, or of the other kind of program \(op 0\)"),
    (r"\w+-(other-kind|reserved|unused-(in|out|res|tens)|\w+-out-of-range)", r"names a record that is not there"),
    (r"\w+-(\w+-are-floats|\w+-is-|\w+-in-(rows|tiles|blocks))", r"has not the type that its kind takes \(op \d+\)"),
    (
        r"(\w|-)+-(0|3|all-ones|nan|infinite|negative|of-kernel|beyond|unused-(last-)?attribute|dim-above-limit|bits-\d)$",
        r"attribute is out of range \(op \d+\)",
    ),
    (r"", r"shapes do not fit its kind \(op \d+\)"),
)


def refusal(data: bytes) -> str | None:
    """What C says of a file, None where it accepts it."""
    try:
        Model(data)
    except ArtifactError as error:
        return str(error)
    return None


def python_reads(data: bytes) -> Program | str:
    """The program, or why the Python reader refuses it."""
    try:
        return artifact.from_bytes(data, "mutant.lil")
    except ArtifactError as error:
        return str(error)


def run_sequences(model: Model, sequences: list[np.ndarray]) -> np.ndarray:
    """All together."""
    lengths = np.array([len(ids) for ids in sequences], np.uint32)
    size = model.sequence_arena_bytes(int(lengths.sum()))
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    outputs = np.empty((len(sequences), model.output_cols), np.float32)
    counts = np.array([len(sequences)], np.uint32)
    model.run_sequences(memory[start : start + size], np.concatenate(sequences), lengths, counts, outputs)
    return outputs


def run(model: Model, images: np.ndarray) -> np.ndarray:
    memory = np.zeros(model.arena_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    outputs = np.empty((len(images), model.output_cols), np.float32)
    model.run(memory[start : start + model.arena_bytes], images.reshape(len(images), -1), outputs)
    return outputs


def test_hostile_file(hostile_file: "HostileFile") -> None:
    said = refusal(hostile_file.data)
    if hostile_file.metadata_only:
        assert said is None
    else:
        wanted = next(message for name, message in SAYS if re.match(name, hostile_file.name))
        assert said is not None
        assert re.search(wanted, said), said


def test_every_truncation_is_refused(good_files: list[bytes]) -> None:
    for good in good_files:
        for size in range(len(good)):
            said = refusal(good[:size])
            assert said is not None, size
            assert said.startswith("truncated"), said


def test_every_altered_byte_is_refused(good_files: list[bytes]) -> None:
    for good in good_files:
        for position in range(len(good)):
            altered = bytearray(good)
            altered[position] ^= 0x10
            assert refusal(bytes(altered)) is not None, position


def test_a_file_may_lie_at_any_address(good_file: bytes, good_program: Program) -> None:
    for shift in range(1, 9):
        model = Model(memoryview(bytes(shift) + good_file)[shift:])
        outputs = run(model, np.asarray(good_program.golden_inputs))
        assert outputs.tobytes() == model.golden_outputs == good_program.golden_outputs.tobytes()


def test_a_model_keeps_its_buffer(good_file: bytes) -> None:
    buffer = bytearray(good_file)
    model = Model(buffer)
    with pytest.raises(BufferError):
        buffer.clear()
    del model
    buffer.clear()


def test_what_is_not_bytes_is_refused(good_file: bytes) -> None:
    for wrong in (None, "model.lil", [1, 2], np.zeros((4, 4))[:, ::2]):
        with pytest.raises((TypeError, BufferError, ValueError)):
            Model(wrong)  # type: ignore[arg-type]


def both_outputs(program: Program, data: bytes, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The reference's and the runtime's outputs for random examples."""
    source = program.buffers[program.input]
    if not program.max_tokens:
        images = rng.integers(0, 256, (2, source.rows, source.cols), dtype=np.uint8)
        return reference.run(program, images), run(Model(data), images)
    known, most = num_token_ids(program), min(program.max_tokens, 40)
    sequences = [rng.integers(0, known, length).astype(np.uint32) for length in (1, most, 1 + most // 3)]
    return reference.run(program, sequences), run_sequences(Model(data), sequences)


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_python_and_c_agree_on_mutants(kind: str, mutants: dict[str, list[bytes]]) -> None:
    """Both accept or both refuse, and what they accept they run to the same bits."""
    rng = np.random.default_rng(1)
    accepted = 0
    for number, data in enumerate(mutants[kind][:1200]):
        said, program = refusal(data), python_reads(data)
        if isinstance(program, str):
            # The fields for people must match the shapes, which C does not see.
            assert said is not None or "metadata" in program, f"{number}: C accepts, Python says {program}"
            continue
        assert said is None, f"{number}: Python accepts, C says {said}"
        accepted += 1
        wanted, outputs = both_outputs(program, data, rng)
        same = (outputs.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(outputs) & np.isnan(wanted))
        assert same.all(), number
    assert accepted > 50


@pytest.mark.parametrize("how", ["same-op", "later-op", "partly", "scratch"])
def test_overlap_is_refused(good_program: Program, how: str) -> None:
    """One buffer moved onto another that is alive with it, inside the arena."""
    ops, buffers = good_program.ops, list(good_program.buffers)
    attention = next(op for op in ops if op.kind == "attention")
    residual = next(op for op in ops if op.kind == "linear_add")
    moved, onto, shift = {
        "same-op": (attention.outputs[0], attention.inputs[0], 0),
        "later-op": (attention.outputs[0], residual.inputs[2], 0),
        "partly": (attention.outputs[0], attention.inputs[0], 64),
        "scratch": (attention.outputs[0], attention.outputs[1], 64),
    }[how]
    buffers[moved] = replace(buffers[moved], offset=buffers[onto].offset + shift)
    ends = [
        buffer.offset + buffer.num_bytes
        for index, buffer in enumerate(buffers)
        if index not in (good_program.input, good_program.output)
    ]
    hostile = replace(good_program, buffers=tuple(buffers), arena_bytes=-(-max(ends) // 64) * 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "validate", lambda self: None)
        data = artifact.to_bytes(hostile)
    said = refusal(data)
    assert said is not None
    assert "still needed" in said


def test_models_with_an_arena_of_nothing() -> None:
    """Every buffer is the caller's: as small as a program gets."""
    b = ProgramBuilder()
    x = b.input("image", 1, 2)
    ones = b.tensor("one", role="constant", format="f32", values=np.ones((1, 2), np.float32))
    metadata = {
        "task": "image-classification",
        "labels": ["a", "b"],
        "image": {"height": 1, "width": 1, "channels": 2},
    }
    program = b.build(output=b.emit("normalize", [x], [ones, ones]), metadata=metadata)
    model = Model(artifact.to_bytes(program))
    assert (model.arena_bytes, model.num_golden) == (0, 0)
    assert run(model, np.array([[[3, 255]]], np.uint8)).tolist() == [[4.0, 256.0]]
