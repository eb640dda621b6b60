"""OpenVINO on its CPU device: fp32, bf16 (its own default where the processor has it), and int8 by NNCF."""

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare

CALIBRATION_IMAGES = 128
PRECISIONS = {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("f32", "bf16")}  # int8: of what is not quantised


def version() -> str:
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def build(job: Job) -> Built:
    from lilliput.peers.choose import quickest

    images: NDArray[np.uint8] = np.load(job.images)[: job.batch]
    ways: dict[str, Callable[[], Call]] = {}
    found: dict[str, Built] = {}
    # For a batch on several threads: one request on all of them, or a part of the batch on each.
    for requests in {1, job.threads if job.batch % job.threads == 0 else 1}:
        for model_name, model in _models(job, job.batch // requests).items():
            path = f"{job.folder}/{len(found)}.xml"
            openvino.save_model(model, path, compress_to_fp16=False)
            for precision in PRECISIONS[job.variant]:
                name = f"{model_name}, {precision}" + (f", {requests} requests" if requests > 1 else "")
                settings = {"precision": precision, "requests": requests}
                found[name] = Built((path, path.replace(".xml", ".bin")), settings)
                ways[name] = _way(job, found[name], images)
    best, note = quickest(ways)
    return Built(found[best].files, found[best].settings, note)


def open_engine(job: Job, built: Built) -> Prepare:
    assert built.settings is not None
    requests = int(built.settings["requests"])
    configuration = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": str(requests),
        "PERFORMANCE_HINT": "LATENCY" if requests == 1 else "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": built.settings["precision"],
    }
    compiled = openvino.Core().compile_model(built.files[0], "CPU", configuration)

    def prepare(images: NDArray[np.uint8]) -> Call:
        parts = np.split(np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32), requests)
        running = [compiled.create_infer_request() for _ in parts]
        for request, part in zip(running, parts, strict=True):
            request.set_input_tensor(openvino.Tensor(part, shared_memory=True))
        outputs: list[NDArray[np.float32]] = [request.get_output_tensor().data for request in running]
        if requests == 1:
            (request,), (output,) = running, outputs

            def call() -> NDArray[np.float32]:
                request.infer()
                return output

            vars(call)["inputs"] = parts  # the request has only their addresses
            return call

        def call_all() -> NDArray[np.float32]:
            for each in running:
                each.start_async()
            for each in running:
                each.wait()
            return np.concatenate(outputs)

        vars(call_all)["inputs"] = parts
        return call_all

    return prepare


def _way(job: Job, built: Built, images: NDArray[np.uint8]) -> Callable[[], Call]:
    return lambda: open_engine(job, built)(images)


def _models(job: Job, batch: int) -> dict[str, Any]:
    """Name -> OpenVINO model with the batch fixed, as fp32 or with the nodes of NNCF's int8."""
    import torch

    from lilliput import artifact
    from lilliput.peers.graph import as_pixels, as_torch

    program = artifact.read(job.model)
    models = {}
    for name, explicit in (("fused attention", False), ("written out attention", True)):
        module = as_torch(program, explicit)
        shape = (batch, *module.image_shape)
        models[name] = openvino.convert_model(module, example_input=torch.zeros(shape), input=list(shape))
    if job.variant != "int8":
        return models
    import nncf

    images, batches = np.load(job.calibration), -(-CALIBRATION_IMAGES // batch)
    pixels = as_pixels(images[np.arange(batches * batch) % len(images)]).reshape(-1, *shape)
    return {
        name: nncf.quantize(
            model,
            nncf.Dataset(list(pixels)),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric activations: quicker than MIXED
            subset_size=batches,
        )
        for name, model in models.items()
    }
