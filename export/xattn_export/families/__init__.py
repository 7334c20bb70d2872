"""The architectures that can be exported. `table.py` lists them."""
