"""Quantisation of everything the file stores, weights, embeddings and vectors, with training or by calibration alone;
activations follow.

Once a `Linear` has a quantiser on its weight it quantises its input by row (`lilliput.models.layers`), and attention
runs on integer levels, so the simulated model computes what the program will.
"""

from lilliput.compress.base import Claim, Pass
from lilliput.compress.formats import (
    attach_quantizers,
    formats_claim,
    linear_formats,
    matrix_formats,
    quantized_parameters,
)
from lilliput.compress.hidden import fix_hidden_scales
from lilliput.compress.post_training import Rounding, round_on_batches
from lilliput.compress.sensitivity import choose_formats, inputs_seen
from lilliput.config import QuantizeSettings
from lilliput.models.low_rank import linear_layers
from lilliput.models.vit import ViT
from lilliput.train.calibration import Calibration

CALIBRATION_EXAMPLES = 512

__all__ = ["Quantization", "attach_quantizers"]


class Quantization(Pass):
    """Each weight to its format, tokens and positions to `embedding_format`, biases and norms to bfloat16.

    With `epochs = 0` nothing is trained: weights are rounded one layer after the other, as by `lil compress`
    (`lilliput.compress.post_training`), on training images without their labels.
    """

    def __init__(self, settings: QuantizeSettings) -> None:
        self.settings = settings
        self.formats: dict[str, str] = {}  # of every matrix, by its full name; known once attached

    def applies_to(self, model: ViT) -> list[str]:
        return [f"{name}.{parameter}" if name else parameter for name, _, parameter in quantized_parameters(model)]

    def attach(self, model: ViT, calibration: Calibration) -> None:
        settings = self.settings
        for linear in linear_layers(model).values():
            linear.input_bits = settings.activation_bits
        if settings.code_bytes is None:
            linears = linear_formats(model, settings)
        else:
            linears = choose_formats(model, settings, settings.code_bytes, calibration)
        self.formats = matrix_formats(model, linears, lambda name: settings.embedding_format)
        if settings.epochs == 0:
            rounding = Rounding(self.formats, settings.hidden, power_of_two=settings.scales == "power_of_two")
            batches = inputs_seen(model, calibration, CALIBRATION_EXAMPLES)
            round_on_batches(model, rounding, [(pixels, None) for pixels in batches])
            return
        if settings.hidden == "static":
            fix_hidden_scales(model, lambda: calibration.forward(CALIBRATION_EXAMPLES))
        attach_quantizers(model, self.formats.__getitem__, settings.scales)

    def claims(self, model: ViT) -> list[Claim]:
        bits = self.settings.activation_bits
        detail = f"what goes into every product with weights has {bits} bits"
        claims = [formats_claim(self.formats), Claim("activation bits", "quantize", detail, {"bits": bits})]
        if self.settings.scales == "power_of_two":
            claims.append(Claim("power-of-two scales", "quantize", "the scales of all matrices are powers of two"))
        if self.settings.code_bytes is not None:
            claims.append(_bytes_claim(self.formats, self.settings.code_bytes))
        return claims


def _bytes_claim(formats: dict[str, str], code_bytes: int) -> Claim:
    layers: dict[str, list[str]] = {}
    for name, format_name in formats.items():
        if name.endswith(".weight"):
            layers.setdefault(format_name, []).append(name.removesuffix(".weight"))
    listed = "; ".join(f"{name}: {', '.join(layers[name])}" for name in sorted(layers))
    detail = f"the codes of all weights take at most {code_bytes} bytes ({listed})"
    return Claim("code bytes", "quantize", detail, {"code_bytes": code_bytes})
