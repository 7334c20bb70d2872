"""BLIP-2, with OPT or T5 as its language model."""
