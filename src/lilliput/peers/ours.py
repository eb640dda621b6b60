"""Lilliput itself, measured as the peers are: the file that is measured, through `lilliput.open`."""

import numpy as np
from numpy.typing import NDArray

import lilliput
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare


def version() -> str:
    return lilliput.__version__


def build(job: Job) -> Built:
    return Built((job.model,))


def open_engine(job: Job, built: Built) -> Prepare:
    session = lilliput.open(built.files[0], isa=job.isa, num_threads=job.threads)

    def prepare(images: NDArray[np.uint8]) -> Call:
        return lambda: session.run(images)

    return prepare
