"""The modes of quantization: a file for each, and the table of them."""
