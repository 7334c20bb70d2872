"""Qwen2-VL and its kind: images of any size and shape, in a text whose positions follow their rows and columns."""
