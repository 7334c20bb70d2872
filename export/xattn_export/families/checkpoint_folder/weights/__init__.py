"""The weights of a Transformers folder: found, read, unwrapped, and merged with an adapter."""
