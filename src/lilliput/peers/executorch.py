"""ExecuTorch with its XNNPACK backend: fp32, and int8 weights per channel with activations quantised as it runs."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any

import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime

from lilliput.peers.choose import build_quickest, in_parts
from lilliput.peers.inputs import Inputs, batch_of, lengths_vary, load, parts_of
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare

CALIBRATION_EXAMPLES = 128


def version() -> str:
    return installed_version("executorch")


def facts() -> dict[str, Any]:
    return {"threads": portable_lib._threadpool_get_thread_count()}


def build(job: Job) -> Built:
    ways: dict[str, Callable[[], Built]] = {}
    for name in ("dynamic", "static") if job.variant == "int8" else ("fp32",):
        ways[name] = partial(_built, job, name)
    return build_quickest(job, ways, open_engine)


def _built(job: Job, kind: str) -> Built:
    path = f"{job.folder}/{kind}.pte"
    _export(job, path, kind)
    return Built((path,))


def open_engine(job: Job, built: Built) -> Prepare:
    portable_lib._unsafe_reset_threadpool(job.threads)
    method = Runtime.get().load_program(built.files[0]).load_method("forward")
    size = part_size(load(job.inputs), job.batch)

    def prepare(batch: Inputs) -> Call:
        parts = parts_of(batch, size)
        inputs = [tuple(torch.from_numpy(array) for array in part.arrays) for part in parts]
        # A copy where parts follow each other: the method has one place for its outputs.
        calls = [partial(_execute, method, each, len(parts) > 1) for each in inputs]
        return in_parts(parts, calls, 1)

    return prepare


def _execute(method: Any, inputs: tuple[torch.Tensor, ...], copied: bool) -> torch.Tensor:
    (output,) = method.execute(inputs)
    result: torch.Tensor = output.clone() if copied else output
    return result


def part_size(inputs: Inputs, batch: int) -> int:
    """Texts of several lengths go one by one: nothing is padded, and the one axis that varies is that of tokens."""
    return 1 if lengths_vary(inputs, batch) else batch


def _export(job: Job, path: str, kind: str) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from lilliput.peers.sources import example_of, module_of

    # Attention written out goes to XNNPACK; torch's own is decomposed with guards that do not, and is half as fast.
    module, inputs = module_of(job, explicit_attention=True), load(job.inputs)
    example = example_of(job, part_size(inputs, job.batch))
    shapes = None
    if lengths_vary(inputs, job.batch):
        shapes = ({1: torch.export.Dim("tokens", min=2, max=max(len(ids) for ids in inputs))},)
    ready = module if kind == "fp32" else _quantized(job, module, example, shapes, dynamic=kind == "dynamic")
    exported = torch.export.export(ready, example, dynamic_shapes=shapes)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    with open(path, "wb") as file:
        lowered.write_to_file(file)


def _quantized(
    job: Job, module: torch.nn.Module, example: tuple[torch.Tensor, ...], shapes: Any, dynamic: bool
) -> torch.nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from lilliput.peers.sources import as_tensors

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer()
    if dynamic:  # its dynamic convolution does not run
        quantizer.set_module_type(torch.nn.Linear, config)
    else:
        quantizer.set_global(config)
    prepared = prepare_pt2e(torch.export.export(module, example, dynamic_shapes=shapes).module(), quantizer)
    inputs, size = load(job.calibration), len(example[0])
    for part in parts_of(batch_of(inputs, 0, -(-CALIBRATION_EXAMPLES // size) * size), size):
        prepared(*as_tensors(part))
    converted: torch.nn.Module = convert_pt2e(prepared)
    return converted
