"""ONNX Runtime on its CPU provider: fp32, and int8 weights with activations quantised as it runs."""

from collections.abc import Callable
from functools import partial

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lilliput.peers.choose import build_quickest, in_parts
from lilliput.peers.inputs import Division, Inputs, Part, divisions, load, parts_of
from lilliput.peers.onnx_files import FUSED, GRAPHS, OnnxFiles
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare


def version() -> str:
    return str(onnxruntime.__version__)


def build(job: Job) -> Built:
    files, inputs = OnnxFiles(job), load(job.inputs)
    ways: dict[str, Callable[[], Built]] = {}
    for division in divisions(inputs, job.batch, job.threads) if files.texts else [Division(job.batch)]:
        for graph in GRAPHS:
            kinds = files.int8_operators(graph) if job.variant == "int8" else {"": ()}
            for what, operators in kinds.items():
                name = ", ".join(filter(None, (graph, what, str(division) if files.vary else "")))
                ways[name] = partial(_built, files, graph, operators, division)
    return build_quickest(job, ways, open_engine)


def _built(files: OnnxFiles, graph: str, operators: tuple[str, ...], division: Division) -> Built:
    masked = files.texts and (division.size > 1 or graph == FUSED)
    path = files.exported(graph, masked)
    if operators:
        path = files.quantized(path, operators)
    return Built((path,), {**division._asdict(), "masked": masked, "outputs": files.num_outputs})


def open_engine(job: Job, built: Built) -> Prepare:
    assert built.settings is not None
    size, requests, masked = built.settings["size"], built.settings["requests"], built.settings["masked"]
    num_outputs = int(built.settings["outputs"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads // requests
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(built.files[0], options, providers=["CPUExecutionProvider"])

    def prepare(batch: Inputs) -> Call:
        parts = parts_of(batch, size, masked)
        return in_parts(parts, [_bound(session, part, num_outputs) for part in parts], requests)

    return prepare


def _bound(session: "onnxruntime.InferenceSession", part: Part, num_outputs: int) -> Call:
    """A call with inputs and outputs bound beforehand: no copies and no look-ups in it."""
    binding = session.io_binding()
    for source, array in zip(session.get_inputs(), part.arrays, strict=True):
        binding.bind_input(source.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    outputs = np.empty((len(part.rows), num_outputs), np.float32)
    binding.bind_output(session.get_outputs()[0].name, "cpu", 0, np.float32, outputs.shape, outputs.ctypes.data)

    def call() -> NDArray[np.float32]:
        session.run_with_iobinding(binding)
        return outputs

    vars(call)["inputs"] = part.arrays  # the binding has only their addresses
    return call
