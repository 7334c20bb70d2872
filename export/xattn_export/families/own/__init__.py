"""Checkpoints that `xattn-edge train` wrote."""
