"""A bundle becomes a smaller one, with standard operators only and the loss measured."""

from xattn_export.quantize.bundle import QuantizeReport, quantize_bundle

__all__ = ["QuantizeReport", "quantize_bundle"]
