"""ExecuTorch with its XNNPACK backend: fp32, and int8 weights per channel with activations quantised as it runs."""

from collections.abc import Callable
from importlib.metadata import version as installed_version
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime
from numpy.typing import NDArray

from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare

CALIBRATION_IMAGES = 128


def version() -> str:
    return installed_version("executorch")


def facts() -> dict[str, Any]:
    return {"threads": portable_lib._threadpool_get_thread_count()}


def build(job: Job) -> Built:
    from lilliput.peers.choose import quickest

    images: NDArray[np.uint8] = np.load(job.images)[: job.batch]
    paths: dict[str, str] = {}
    ways: dict[str, Callable[[], Call]] = {}
    for name in ("dynamic", "static") if job.variant == "int8" else ("fp32",):
        paths[name] = f"{job.folder}/{name}.pte"
        ways[name] = _way(job, paths[name], name, images)
    best, note = quickest(ways)
    return Built((paths[best],), note=note)


def _way(job: Job, path: str, kind: str, images: NDArray[np.uint8]) -> Callable[[], Call]:
    def way() -> Call:
        _export(job, path, kind)
        return open_engine(job, Built((path,)))(images)

    return way


def open_engine(job: Job, built: Built) -> Prepare:
    portable_lib._unsafe_reset_threadpool(job.threads)
    method = Runtime.get().load_program(built.files[0]).load_method("forward")

    def prepare(images: NDArray[np.uint8]) -> Call:
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32))
        return lambda: method.execute((pixels,))[0]

    return prepare


def _export(job: Job, path: str, kind: str) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from lilliput import artifact
    from lilliput.peers.graph import as_torch

    # Attention written out goes to XNNPACK; torch's own is decomposed with guards that do not, and is half as fast.
    module = as_torch(artifact.read(job.model), explicit_attention=True)
    example = (torch.zeros(job.batch, *module.image_shape),)
    ready = module if kind == "fp32" else _quantized(job, module, example, dynamic=kind == "dynamic")
    exported = torch.export.export(ready, example)
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    with open(path, "wb") as file:
        lowered.write_to_file(file)


def _quantized(job: Job, module: torch.nn.Module, example: tuple[torch.Tensor], dynamic: bool) -> torch.nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from lilliput.peers.graph import as_pixels

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer()
    if dynamic:  # its dynamic convolution does not run
        quantizer.set_module_type(torch.nn.Linear, config)
    else:
        quantizer.set_global(config)
    prepared = prepare_pt2e(torch.export.export(module, example).module(), quantizer)
    images = np.load(job.calibration)
    for number in range(-(-CALIBRATION_IMAGES // job.batch)):
        batch = images[np.arange(number * job.batch, (number + 1) * job.batch) % len(images)]
        prepared(torch.from_numpy(as_pixels(batch)))
    converted: torch.nn.Module = convert_pt2e(prepared)
    return converted
