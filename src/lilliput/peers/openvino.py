"""OpenVINO on its CPU device: fp32, bf16 (its own default where the processor has it), and int8 by NNCF."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from lilliput.peers.choose import build_quickest, in_order, in_parts
from lilliput.peers.inputs import SUB_BATCH, Division, Inputs, Part, batch_of, divisions, lengths_vary, load, parts_of
from lilliput.peers.table import Built, Job
from lilliput.peers.worker import Call, Prepare

CALIBRATION_EXAMPLES = 128
PRECISIONS = {"fp32": ("f32",), "bf16": ("bf16",), "int8": ("f32", "bf16")}  # int8: of what is not quantised
FORMS = {"fused attention": False, "written out attention": True}


def version() -> str:
    return str(openvino.__version__).split("-", maxsplit=1)[0]


def build(job: Job) -> Built:
    inputs, models = load(job.inputs), _Models(job)
    ways: dict[str, Callable[[], Built]] = {}
    for division in divisions(inputs, job.batch, job.threads):
        for form in FORMS:
            for precision in PRECISIONS[job.variant]:
                how = str(division) if job.batch > 1 else ""
                name = ", ".join(filter(None, (form, precision, how)))
                ways[name] = partial(models.built, form, precision, division)
    return build_quickest(job, ways, open_engine)


def open_engine(job: Job, built: Built) -> Prepare:
    assert built.settings is not None
    size, requests = int(built.settings["size"]), int(built.settings["requests"])
    configuration = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": str(requests),
        "PERFORMANCE_HINT": "LATENCY" if requests == 1 else "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": built.settings["precision"],
    }
    compiled = openvino.Core().compile_model(built.files[0], "CPU", configuration)

    def prepare(batch: Inputs) -> Call:
        parts = parts_of(batch, size)
        running = [_request(compiled, part) for part in parts]
        if requests == 1:
            return in_parts(
                parts, [partial(_infer, request, part) for request, part in zip(running, parts, strict=True)], 1
            )

        def call() -> NDArray[np.float32]:
            for request in running:
                request.start_async()
            for request in running:
                request.wait()
            return in_order(parts, [request.get_output_tensor().data for request in running])

        vars(call)["inputs"] = parts  # the requests have only their addresses
        return call

    return prepare


def _request(compiled: Any, part: Part) -> Any:
    request = compiled.create_infer_request()
    for index, array in enumerate(part.arrays):
        request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
    return request


def _infer(request: Any, part: Part) -> NDArray[np.float32]:
    """The part is given too because the request has only its address."""
    request.infer()
    outputs: NDArray[np.float32] = request.get_output_tensor().data
    return outputs


class _Models:
    """The files of a job's models, each made when it is first asked for."""

    def __init__(self, job: Job) -> None:
        self.job, self.vary = job, lengths_vary(load(job.inputs), job.batch)
        self.saved, self.made = cache(self._save), cache(self._make)

    def built(self, form: str, precision: str, division: Division) -> Built:
        path = self.saved(form, division.size)
        settings = {"precision": precision, **division._asdict()}
        return Built((path, path.replace(".xml", ".bin")), settings)

    def _save(self, form: str, size: int) -> str:
        """With shapes as fixed as they are: only the length of padded texts varies."""
        path = f"{self.job.folder}/{list(FORMS).index(form)}-{size}.xml"
        model = self.made(form, min(size, SUB_BATCH) if self.vary else size)
        if self.vary:
            model = model.clone()
            model.reshape({index: [size, -1] for index in range(len(model.inputs))})
        openvino.save_model(model, path, compress_to_fp16=False)
        return path

    def _make(self, form: str, size: int) -> Any:
        """The OpenVINO model of parts of `size`, as fp32 or with the nodes of NNCF's int8."""
        from lilliput.peers.sources import example_of, module_of

        example = example_of(self.job, size)
        shapes = [[-1, -1] if self.vary else list(each.shape) for each in example]
        model = openvino.convert_model(module_of(self.job, FORMS[form]), example_input=example, input=shapes)
        if self.job.variant != "int8":
            return model
        import nncf

        parts = self._calibration(size)
        return nncf.quantize(
            model,
            nncf.Dataset([part.arrays for part in parts]),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,  # symmetric activations: quicker than MIXED
            subset_size=len(parts),
        )

    def _calibration(self, size: int) -> list[Part]:
        examples = -(-CALIBRATION_EXAMPLES // size) * size
        return parts_of(batch_of(load(self.job.calibration), 0, examples), size)
