"""xattn-edge: cross-modal attention models, from training to an answer on an edge device.

Importing this package loads neither torch nor ONNX Runtime nor numpy; `load` needs no torch at all.

    import xattn_edge
    with xattn_edge.load("emoji-caption.xattn", provider="cpu") as model:
        print(model.caption("photo.png").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn_runtime import (
        Answer,
        AudioError,
        BundleError,
        Caption,
        CaptionTask,
        Chat,
        CheckpointError,
        Classification,
        DataError,
        DecodingOptions,
        DependencyError,
        EncodedImage,
        ImageError,
        IndexFileError,
        Match,
        OutputError,
        ProviderError,
        QuestionError,
        RetrievalTask,
        ScoredText,
        Sentiment,
        SentimentTask,
        StreamedToken,
        Turn,
        UserError,
        VerificationError,
        Video,
        VqaTask,
        XattnError,
        default_bundle,
        load,
    )

__all__ = [
    "Answer",
    "AudioError",
    "BundleError",
    "Caption",
    "CaptionTask",
    "Chat",
    "CheckpointError",
    "Classification",
    "DataError",
    "DecodingOptions",
    "DependencyError",
    "EncodedImage",
    "ImageError",
    "IndexFileError",
    "Match",
    "OutputError",
    "ProviderError",
    "QuestionError",
    "RetrievalTask",
    "ScoredText",
    "Sentiment",
    "SentimentTask",
    "StreamedToken",
    "Turn",
    "UserError",
    "VerificationError",
    "Video",
    "VqaTask",
    "XattnError",
    "__version__",
    "default_bundle",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import xattn_runtime

    return getattr(xattn_runtime, name)


def __dir__() -> list[str]:
    return sorted(__all__)
