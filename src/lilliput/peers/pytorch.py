"""PyTorch fp32: eager, and torch.compile with its weights frozen, autotuned, behind inductor's C++ wrapper."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lilliput.peers.choose import build_quickest, in_parts
from lilliput.peers.inputs import Division, Inputs, divisions, lengths_vary, load, parts_of
from lilliput.peers.sources import as_tensors, module_of
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare

COMPILE_OPTIONS: dict[str, Any] = {"freezing": True, "max_autotune": True, "cpp_wrapper": True}
COMPILE_NOTE = "inductor: freezing, max_autotune, cpp_wrapper"


def version() -> str:
    return str(torch.__version__)


def facts() -> dict[str, Any]:
    return {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


def build(job: Job) -> Built:
    path = f"{job.folder}/state_dict.pt"  # what a user would ship beside his code
    torch.save(module_of(job).state_dict(), path)
    # One request: the threads share each operator, and Python's lock would keep callers apart.
    sizes = [each.size for each in divisions(load(job.inputs), job.batch, job.threads) if each.requests == 1]
    ways = {str(Division(size)): partial(Built, (path,), {"size": size}) for size in sizes}
    built = build_quickest(job, ways, open_engine) if len(ways) > 1 else ways.popitem()[1]()
    notes = [COMPILE_NOTE] * (job.variant == "compile") + [built.note] * bool(built.note)
    return replace(built, note="; ".join(notes))


def open_engine(job: Job, built: Built) -> Prepare:
    assert built.settings is not None
    size = int(built.settings["size"])
    torch.set_num_threads(job.threads)
    if torch.get_num_interop_threads() != 1:  # may be set once
        torch.set_num_interop_threads(1)
    run: Callable[..., Tensor] = module_of(job)
    if job.variant == "compile":
        options = dict(COMPILE_OPTIONS)
        if job.isa == "avx2":
            options["cpp.simdlen"] = 256
        run = torch.compile(run, options=options, dynamic=lengths_vary(load(job.inputs), job.batch) or None)

    def call(arrays: tuple[Tensor, ...]) -> Tensor:
        with torch.inference_mode():
            return run(*arrays)

    def prepare(batch: Inputs) -> Call:
        parts = parts_of(batch, size)
        return in_parts(parts, [partial(call, as_tensors(part)) for part in parts], 1)

    return prepare
