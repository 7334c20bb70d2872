"""Towers: from Transformers' vision models to the tokens that a connector reads, of images of one size."""
