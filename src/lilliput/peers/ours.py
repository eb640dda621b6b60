"""Lilliput itself, measured as the peers are: the file that is measured, through `lilliput.open`."""

import lilliput
from lilliput.peers.inputs import Inputs
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare


def version() -> str:
    return lilliput.__version__


def build(job: Job) -> Built:
    return Built((job.model,))


def open_engine(job: Job, built: Built) -> Prepare:
    session = lilliput.open(built.files[0], isa=job.isa, num_threads=job.threads)

    def prepare(batch: Inputs) -> Call:
        return lambda: session.run(batch)

    return prepare
