"""PyTorch fp32: eager, and torch.compile with its weights frozen, autotuned, behind inductor's C++ wrapper."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput import artifact
from lilliput.peers.graph import as_pixels, as_torch
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare

COMPILE_OPTIONS: dict[str, Any] = {"freezing": True, "max_autotune": True, "cpp_wrapper": True}


def version() -> str:
    return str(torch.__version__)


def facts() -> dict[str, Any]:
    return {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


def build(job: Job) -> Built:
    path = f"{job.folder}/state_dict.pt"  # what a user would ship beside his code
    torch.save(as_torch(artifact.read(job.model)).state_dict(), path)
    return Built((path,), note="inductor: freezing, max_autotune, cpp_wrapper" if job.variant == "compile" else "")


def open_engine(job: Job, built: Built) -> Prepare:
    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(1)
    run: Callable[[Tensor], Tensor] = as_torch(artifact.read(job.model))
    if job.variant == "compile":
        options = dict(COMPILE_OPTIONS)
        if job.isa == "avx2":
            options["cpp.simdlen"] = 256
        run = torch.compile(run, options=options)

    def prepare(images: NDArray[np.uint8]) -> Call:
        pixels = torch.from_numpy(as_pixels(images))

        def call() -> Tensor:
            with torch.inference_mode():
                return run(pixels)

        return call

    return prepare
