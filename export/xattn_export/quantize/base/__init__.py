"""What every part of quantization stands on: options, layers, the form of products, and the rounding of weights."""
