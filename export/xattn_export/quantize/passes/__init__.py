"""The graph passes of quantization, one file each."""
