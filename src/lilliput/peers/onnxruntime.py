"""ONNX Runtime on its CPU provider: fp32, and int8 weights with activations quantised as it runs."""

import shutil
from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare

OPSETS = (20, 23)  # from 23 on attention is one operator
INT8_OPERATORS = {
    "products": ["MatMul", "Gemm"],
    "products and convolutions": ["MatMul", "Gemm", "Conv"],
    "products, convolutions and fused attention": ["MatMul", "Gemm", "Conv", "Attention"],
}


def version() -> str:
    return str(onnxruntime.__version__)


def build(job: Job) -> Built:
    from lilliput.peers.choose import quickest

    images: NDArray[np.uint8] = np.load(job.images)[: job.batch]

    def way(path: str) -> Callable[[], Call]:
        return lambda: open_engine(job, Built((path,)))(images)

    exported = _export(job)
    paths = exported | _fuse(exported)
    if job.variant == "int8":
        paths = _quantize(paths)
    best, note = quickest({name: way(path) for name, path in paths.items()})
    target = f"{job.folder}/model.onnx"
    shutil.move(paths[best], target)
    return Built((target,), note=note)


def open_engine(job: Job, built: Built) -> Prepare:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(built.files[0], options, providers=["CPUExecutionProvider"])
    source, result = session.get_inputs()[0], session.get_outputs()[0]

    def prepare(images: NDArray[np.uint8]) -> Call:
        # Input and output are bound beforehand: no copies and no look-ups in the timed call.
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
        logits = np.empty(result.shape, np.float32)
        binding = session.io_binding()
        binding.bind_input(source.name, "cpu", 0, np.float32, pixels.shape, pixels.ctypes.data)
        binding.bind_output(result.name, "cpu", 0, np.float32, logits.shape, logits.ctypes.data)

        def call() -> NDArray[np.float32]:
            session.run_with_iobinding(binding)
            return logits

        vars(call)["input"] = pixels  # the binding has only its address
        return call

    return prepare


def _export(job: Job) -> dict[str, str]:
    """One .onnx file for each opset, from torch's exporter, with the batch fixed."""
    import torch

    from lilliput import artifact
    from lilliput.peers.graph import as_torch

    program = artifact.read(job.model)
    module = as_torch(program)
    example = torch.zeros(job.batch, *module.image_shape)
    paths = {}
    for opset in OPSETS:
        path = f"{job.folder}/opset{opset}.onnx"
        torch.onnx.export(
            module, (example,), path, dynamo=True, opset_version=opset, external_data=False, verbose=False
        )
        paths[f"opset {opset}"] = path
    return paths


def _fuse(exported: Mapping[str, str]) -> dict[str, str]:
    """With ONNX Runtime's own Transformer fusions on top."""
    from onnxruntime.transformers import optimizer

    name, path = next(iter(exported.items()))
    fused = path.replace(".onnx", "-fused.onnx")
    optimizer.optimize_model(path, model_type="vit", opt_level=0).save_model_to_file(fused)
    return {f"{name}, Transformer fusions": fused}


def _quantize(exported: Mapping[str, str]) -> dict[str, str]:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    paths = {}
    for name, path in exported.items():
        for what, operators in INT8_OPERATORS.items():
            quantized = path.replace(".onnx", f"-{len(operators)}.onnx")
            quantize_dynamic(
                path,
                quantized,
                op_types_to_quantize=operators,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
            paths[f"{name}, {what}"] = quantized
    return paths
