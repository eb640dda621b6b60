"""A model of texts, measured in turns with other engines: at fixed lengths, or a batch of mixed ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lilliput import artifact
from lilliput.bench import turns
from lilliput.bench.profile import profile as profile_ops
from lilliput.bench.turns import Progress
from lilliput.errors import UserError
from lilliput.peers.inputs import Ids
from lilliput.peers.table import Engine
from lilliput.program.program import Program
from lilliput.runtime.texts import TextSession

DEFAULT_TOKENS = (16, 32, 128, 256)
COMPARED, CALIBRATION = 64, 128  # texts: to compare outputs on (with a batch: 4 batches), and for quantisers
RUN_SEED, CALIBRATION_SEED = 1, 2
# Lengths of lines of text, in tokens: logarithms normally distributed, mean about 35.
MEDIAN_LENGTH, LENGTH_DEVIATION, LEAST_LENGTH, MOST_LENGTH = 28, 0.75, 5, 128
BATCHES = 4


@dataclass(frozen=True)
class Plan:
    """What to measure.

    tokens: lengths, each a run of its own, one text a call; None: those of DEFAULT_TOKENS that the model takes.
    batch: above 1, instead so many texts a call, of mixed lengths. profile: also op by op.
    checkpoint: Hugging Face folder that the peers run; None: the file's own weights.
    """

    model: Path
    engines: tuple[Engine, ...]
    tokens: tuple[int, ...] | None = None
    batch: int = 1
    threads: int = 1
    isa: str | None = None
    seconds: float = 2.0
    profile: bool = False
    checkpoint: Path | None = None


def parse_tokens(value: str) -> tuple[int, ...]:
    """Lengths from "16,32" or "16 32".

    Raises:
        UserError: no positive integers.
    """
    try:
        tokens = tuple(int(each) for each in value.replace(",", " ").split())
    except ValueError:
        tokens = ()
    if not tokens or min(tokens) < 1:
        raise UserError(f"--tokens: {value!r}; must be numbers of at least 1, for example '16,32,128'")
    return tokens


def measure(session: TextSession, plan: Plan, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Measure each length in turn (`turns.measure`); `session` is one on the plan's file, with its threads.

    Returns:
        Plain values for JSON: those of `turns.describe`, the task, where the peers' weights are from, and `lengths`: a
        document of `turns` for each, with `tokens` (null for a batch of mixed lengths; then `mean_tokens` and
        `most_tokens`), `arena_bytes` of one thread, and `profile` where it was asked for.

    Raises:
        UserError: a length that the model does not take, lengths or a profile of a batch, or no checkpoint where one
            was named.
        FailureError: Lilliput's own engine failed.
    """
    tokens = plan.tokens or default_tokens(session.max_tokens)
    _check(session, plan, tokens)
    program = artifact.read(plan.model)
    lengths: list[dict[str, Any]] = []
    runs: list[int | None] = list(tokens) if plan.batch == 1 else [None]
    for index, length in enumerate(runs):
        lengths.append(_measure_one(session, program, plan, length, _shifted(progress, index, len(runs))))
    weights = "the file's own" if plan.checkpoint is None else str(plan.checkpoint)
    about = {"task": session.metadata["task"], "peer_weights": weights}
    return turns.describe(session, plan.model) | about | {"lengths": lengths}


def default_tokens(max_tokens: int) -> tuple[int, ...]:
    """The lengths to measure where none are given."""
    return tuple(tokens for tokens in DEFAULT_TOKENS if tokens <= max_tokens) or (max_tokens,)


def _check(session: TextSession, plan: Plan, tokens: tuple[int, ...]) -> None:
    if plan.batch == 1 and max(tokens) > session.max_tokens:
        raise UserError(f"--tokens: {max(tokens)}; {session.name} takes at most {session.max_tokens}")
    if plan.batch > 1 and plan.tokens is not None:
        raise UserError("--tokens: texts of a batch have mixed lengths; leave --tokens or --batch out")
    if plan.batch > 1 and plan.profile:
        raise UserError("--profile is of one text: choose its length with --tokens, and leave --batch out")
    if plan.checkpoint is not None and not any(
        (plan.checkpoint / name).is_file() for name in ("config.json", "modules.json")
    ):
        raise UserError(f"--checkpoint {plan.checkpoint}: has no config.json; must be a folder of a Hugging Face model")


def _measure_one(
    session: TextSession, program: Program, plan: Plan, tokens: int | None, progress: Progress
) -> dict[str, Any]:
    if tokens is None:
        inputs = mixed_sequences(program, BATCHES * plan.batch, RUN_SEED)
        calibration = mixed_sequences(program, CALIBRATION, CALIBRATION_SEED)
    else:
        inputs = random_sequences(program, np.full(COMPARED, tokens), RUN_SEED)
        calibration = random_sequences(program, np.full(CALIBRATION, tokens), CALIBRATION_SEED)
    run = turns.Plan(
        plan.model,
        plan.engines,
        inputs,
        calibration,
        plan.batch,
        plan.threads,
        plan.isa,
        plan.seconds,
        vectors=session.metadata["task"] == "text-embedding",
        checkpoint=plan.checkpoint,
    )
    lengths = [len(ids) for ids in inputs]
    calls = [lengths[start : start + plan.batch] for start in range(0, len(lengths), plan.batch)]
    about = {
        "tokens": tokens,
        "mean_tokens": float(np.mean(lengths)),
        "most_tokens": max(lengths),
        "arena_bytes": session.sequence_arena_bytes(max(session.pack_tokens(call) for call in calls)),
    }
    result = about | turns.measure(run, progress)
    if plan.profile:
        result["profile"] = profile_ops(session, program, inputs[0], plan.seconds)
    return result


def random_sequences(program: Program, lengths: NDArray[np.int64], seed: int) -> list[Ids]:
    """Seeded sequences of any of the program's token ids, uint32, one of each length."""
    rng = np.random.default_rng(seed)
    tables = [program.tensors[op.tensors[0]] for op in program.ops if op.kind == "embed_tokens"]
    known = min(table.rows for table in tables)
    return [rng.integers(0, known, length).astype(np.uint32) for length in lengths.tolist()]


def mixed_sequences(program: Program, count: int, seed: int) -> list[Ids]:
    """The same with lengths as lines of text have them, as far as the program takes them."""
    return random_sequences(program, np.minimum(mixed_lengths(count, seed), program.max_tokens), seed)


def mixed_lengths(count: int, seed: int) -> NDArray[np.int64]:
    """Seeded lengths in tokens."""
    lengths = np.random.default_rng(seed).lognormal(np.log(MEDIAN_LENGTH), LENGTH_DEVIATION, count)
    return np.clip(lengths, LEAST_LENGTH, MOST_LENGTH).astype(np.int64)


def _shifted(progress: Progress, index: int, runs: int) -> Progress:
    """Progress of one of several runs."""

    def step(done: int, total: int) -> None:
        progress(index * total + done, runs * total)

    return step
