"""Layers around a checkpoint's own weights, over flat tensors, with one `Attention` operator each."""
