"""xattn-edge: cross-modal attention models, from training to an answer on an edge device.

Importing this package loads neither torch nor ONNX Runtime nor numpy; `load` needs no torch at all.

    import xattn_edge
    task = xattn_edge.load("emoji-caption.xattn")
    print(task.caption("picture.png").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn_runtime import UserError, VerificationError, XattnError, load

__all__ = ["UserError", "VerificationError", "XattnError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import xattn_runtime

    return getattr(xattn_runtime, name)


def __dir__() -> list[str]:
    return sorted(__all__)
