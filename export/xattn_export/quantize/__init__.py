"""A bundle becomes a smaller one, with standard operators only and the loss measured."""

from xattn_export.quantize.base.options import Options as QuantizeOptions
from xattn_export.quantize.bundle import quantize_bundle
from xattn_export.quantize.report import QuantizeReport

__all__ = ["QuantizeOptions", "QuantizeReport", "quantize_bundle"]
