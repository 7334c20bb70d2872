"""xattn_runtime: runs bundles of cross-modal attention models on any device.

It needs numpy, onnxruntime, Pillow and tokenizers, and loads each when first used: importing this package loads none.

    import xattn_runtime as xr
    task = xr.load("emoji-caption.xattn")
    print(task.caption("cat.png").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn_runtime.bundle.folder import Bundle, default_bundle, open_bundle
    from xattn_runtime.bundle.manifest import Manifest
    from xattn_runtime.errors import (
        AudioError,
        BundleError,
        CheckpointError,
        DataError,
        DependencyError,
        ImageError,
        IndexFileError,
        OutputError,
        ProviderError,
        QuestionError,
        UserError,
        VerificationError,
        XattnError,
    )
    from xattn_runtime.execution.provider_status import ProviderStatus, provider_status
    from xattn_runtime.loader import load
    from xattn_runtime.profiling import ProfileDocument, ProfileOptions, profile_matrix
    from xattn_runtime.tasks import (
        Answer,
        Caption,
        CaptionTask,
        Chat,
        Classification,
        DecodingOptions,
        EncodedImage,
        Match,
        RetrievalTask,
        ScoredText,
        Sentiment,
        SentimentTask,
        StreamedToken,
        Turn,
        Video,
        VqaTask,
    )
    from xattn_runtime.verify.golden import VerificationReport, verify_bundle

__all__ = [
    "Answer",
    "AudioError",
    "Bundle",
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
    "Manifest",
    "Match",
    "OutputError",
    "ProfileDocument",
    "ProfileOptions",
    "ProviderError",
    "ProviderStatus",
    "QuestionError",
    "RetrievalTask",
    "ScoredText",
    "Sentiment",
    "SentimentTask",
    "StreamedToken",
    "Turn",
    "UserError",
    "VerificationError",
    "VerificationReport",
    "Video",
    "VqaTask",
    "XattnError",
    "__version__",
    "default_bundle",
    "load",
    "open_bundle",
    "profile_matrix",
    "provider_status",
    "verify_bundle",
]

_MODULES = {
    "bundle.folder": ("Bundle", "default_bundle", "open_bundle"),
    "bundle.manifest": ("Manifest",),
    "loader": ("load",),
    "profiling": ("ProfileDocument", "ProfileOptions", "profile_matrix"),
    "execution.provider_status": ("ProviderStatus", "provider_status"),
    "tasks": (
        "Answer",
        "Caption",
        "CaptionTask",
        "Chat",
        "Classification",
        "DecodingOptions",
        "EncodedImage",
        "Match",
        "RetrievalTask",
        "ScoredText",
        "Sentiment",
        "SentimentTask",
        "StreamedToken",
        "Turn",
        "Video",
        "VqaTask",
    ),
    "verify.golden": ("VerificationReport", "verify_bundle"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("xattn_runtime.version").installed_version()
    if name in __all__:
        module = next((module for module, names in _MODULES.items() if name in names), "errors")
        return getattr(import_module(f"xattn_runtime.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
