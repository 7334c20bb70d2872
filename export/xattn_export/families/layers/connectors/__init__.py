"""Connectors: from a tower's tokens to the image tokens that a language model reads."""
