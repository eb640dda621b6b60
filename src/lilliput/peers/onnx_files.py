"""The .onnx files of a job: from torch's exporters, with ONNX Runtime's fusions, in int8; each made when asked for."""

from functools import cache, cached_property

from lilliput.peers.inputs import SUB_BATCH, lengths_vary, load
from lilliput.peers.table import Job

OPSETS = (20, 23)  # from 23 on attention is one operator
FUSED = "Transformer fusions"
TEXT_OPSET = 17  # the last one whose graph ONNX Runtime's fusions for BERT know
INT8_OPERATORS = {"products": ("MatMul", "Gemm"), "products and convolutions": ("MatMul", "Gemm", "Conv")}
TEXT_INT8_OPERATORS = {"products": ("MatMul", "Gemm")}
FUSED_OPERATOR = "Attention"  # what the fusions make of attention; it can be int8 too
FLOAT = 1  # onnx.TensorProto.FLOAT
GRAPHS = (*(f"opset {opset}" for opset in OPSETS), FUSED)


class OnnxFiles:
    """Paths by graph (one of GRAPHS), by whether sequences bring their mask, and by what is int8."""

    def __init__(self, job: Job) -> None:
        inputs = load(job.inputs)
        self.job, self.texts = job, isinstance(inputs, list)
        self.vary = lengths_vary(inputs, job.batch)
        self.exported, self.quantized = cache(self._export), cache(self._quantize)

    @cached_property
    def num_outputs(self) -> int:
        from lilliput.peers.sources import example_of, module_of

        outputs: int = module_of(self.job)(*example_of(self.job, 1)).shape[1]
        return outputs

    def int8_operators(self, graph: str) -> dict[str, tuple[str, ...]]:
        """What can be int8 in a graph, by the name of the way."""
        kinds = dict(TEXT_INT8_OPERATORS if self.texts else INT8_OPERATORS)
        if graph == FUSED:
            kinds["products and fused attention"] = (*list(kinds.values())[-1], FUSED_OPERATOR)
        return kinds

    def _export(self, graph: str, masked: bool) -> str:
        if graph == FUSED:
            return self._fuse(masked)
        import torch

        from lilliput.peers.sources import example_of, module_of

        opset = int(graph.removeprefix("opset "))
        path = f"{self.job.folder}/opset{opset}-{masked}.onnx"
        size = self._example_size(masked)
        example = example_of(self.job, size, masked)
        torch.onnx.export(
            # Written out, attention of texts has fewer nodes; from the later opset on it is one.
            module_of(self.job, explicit_attention=self.texts and opset < OPSETS[-1]),
            example,
            path,
            dynamo=True,
            opset_version=opset,
            external_data=False,
            verbose=False,
            dynamic_shapes=(self._axes(size),) * len(example) if self.vary else None,
        )
        return path

    def _fuse(self, masked: bool) -> str:
        """With ONNX Runtime's own Transformer fusions. Those for BERT know attention by the mask, and only as torch's
        older exporter writes it."""
        from onnxruntime.transformers import optimizer

        path = f"{self.job.folder}/fused-{masked}.onnx"
        source = self._export_for_bert(masked) if self.texts else self.exported(GRAPHS[0], masked)
        optimizer.optimize_model(source, model_type="bert" if self.texts else "vit", opt_level=0).save_model_to_file(
            path
        )
        return path

    def _export_for_bert(self, masked: bool) -> str:
        import torch

        from lilliput.peers.sources import example_of, module_of

        path = f"{self.job.folder}/plain-{masked}.onnx"
        size = self._example_size(masked)
        example = example_of(self.job, size, masked)
        names = ["ids", "mask"][: len(example)]
        torch.onnx.export(
            module_of(self.job, explicit_attention=True),
            example,
            path,
            dynamo=False,
            opset_version=TEXT_OPSET,
            input_names=names,
            output_names=["outputs"],
            dynamic_axes={name: self._axes(size) for name in names} if self.vary else None,
        )
        return path

    def _example_size(self, masked: bool) -> int:
        """How many examples are exported with: where lengths vary, as many as make the batch's axis one that varies."""
        return (min(SUB_BATCH, self.job.batch) if masked else 1) if self.vary else self.job.batch

    @staticmethod
    def _axes(size: int) -> dict[int, str]:
        return {0: "sequences", 1: "tokens"} if size > 1 else {1: "tokens"}

    def _quantize(self, path: str, operators: tuple[str, ...]) -> str:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantized = path.replace(".onnx", f"-{'-'.join(operators)}.onnx")
        quantize_dynamic(
            path,
            quantized,
            op_types_to_quantize=list(operators),
            weight_type=QuantType.QInt8,
            # The type of what comes from operators that shape inference does not know: fused ones.
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": FLOAT},
        )
        return quantized
