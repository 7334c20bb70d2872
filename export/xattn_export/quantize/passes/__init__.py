"""The passes over a graph that quantization is made of, one file each."""
