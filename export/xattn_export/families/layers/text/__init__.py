"""Layers that read and write text."""
