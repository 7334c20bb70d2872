"""ONNX Runtime's telemetry, off unless the user's environment says otherwise.

It knows the variable that ONNX Runtime reads, and loads nothing.
"""

from __future__ import annotations

import os

__all__ = ["TELEMETRY_VARIABLE", "disable_telemetry"]

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"
"""What ONNX Runtime reads once, while it is imported: `0` leaves its telemetry on, `1` turns it off."""


def disable_telemetry() -> bool:
    """Turn it off for this process and those that it starts; call it before onnxruntime is imported.

    From 1.32 on it otherwise writes a device id below the home folder and looks up a host in the network. Returns
    whether this call switched it off: a value that the environment has already is left as it is.
    """
    if os.environ.get(TELEMETRY_VARIABLE):
        return False
    os.environ[TELEMETRY_VARIABLE] = "1"
    return True
