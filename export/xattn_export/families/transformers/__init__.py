"""Families of Transformers: one file or folder each."""
