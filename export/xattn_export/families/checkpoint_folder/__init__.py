"""Folders that `save_pretrained` of Transformers wrote, read as the data that a manifest holds."""
