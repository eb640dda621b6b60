"""The engines that a file is measured beside: one row each, one module a family (`lilliput.peers.<family>`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Engine:
    """A runtime in one way of using it.

    family: the module of this package that builds and opens it. variant: which of the family's ways.
    avx2: environment that keeps it to AVX2; None where it has no such switch.
    """

    name: str
    family: str
    variant: str = ""
    avx2: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Job:
    """What the process of an engine works on. Paths are absolute; `lilliput.peers.inputs` reads the inputs.

    model: the .lil file. folder: the engine's own, for what it builds. inputs: to run. calibration: for quantisers.
    checkpoint: folder of a Hugging Face model, which the peers then run; else they get the weights of the .lil file.
    """

    family: str
    variant: str
    model: str
    folder: str
    inputs: str
    calibration: str
    batch: int
    threads: int
    isa: str | None
    checkpoint: str | None = None


@dataclass(frozen=True)
class Built:
    """What a family made of the program.

    files: all that it needs on a device, the one to open first; empty where the engine builds in memory.
    settings: for opening. note: what was tried and chosen, for people.
    """

    files: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    note: str = ""


_TORCH_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
_OPENVINO_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"}

OURS = Engine("Lilliput", "ours")
PEERS: tuple[Engine, ...] = (
    Engine("PyTorch eager fp32", "pytorch", "eager", _TORCH_AVX2),
    Engine("torch.compile fp32", "pytorch", "compile", _TORCH_AVX2),
    Engine("ONNX Runtime fp32", "onnxruntime", "fp32"),
    Engine("ONNX Runtime int8 dynamic", "onnxruntime", "int8"),
    Engine("OpenVINO fp32", "openvino", "fp32", _OPENVINO_AVX2),
    Engine("OpenVINO bf16", "openvino", "bf16", _OPENVINO_AVX2),
    Engine("OpenVINO int8 (NNCF)", "openvino", "int8", _OPENVINO_AVX2),
    Engine("ExecuTorch XNNPACK fp32", "executorch", "fp32"),
    Engine("ExecuTorch XNNPACK int8", "executorch", "int8"),
    Engine("llama.cpp 8-bit (q8_0)", "llamacpp", "q8_0"),
    Engine("llama.cpp 4-bit (q4_0)", "llamacpp", "q4_0"),
)
