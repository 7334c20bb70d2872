"""A text encoder between image encoder and decoder: the decoder attends to what it makes of an image and a text.

It takes encoded images and token ids; what the text is for is the tasks' affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.execution.session import GraphSession, SessionSettings, Tensor, open_session
from xattn_runtime.tasks.shared.image_encoder import check_key_values, padded

__all__ = ["TextReader", "open_reader"]


class TextReader:
    """The text encoder of one bundle."""

    def __init__(self, session: GraphSession, encoder: GraphSession) -> None:
        """BundleError where it does not take the output of the image encoder `encoder`."""
        check_key_values(encoder, session)
        self.session = session
        self._image_names = [name for name in session.input_shapes if name in encoder.output_shapes]

    def read(self, images: Mapping[str, Tensor], texts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """What a decoder attends to, for a batch of images and as many texts of one length."""
        names = tuple(self.session.output_shapes)
        tensors = self.session.run(names, padded(texts) | {name: images[name] for name in self._image_names})
        return dict(zip(names, tensors, strict=True))


def open_reader(bundle: Bundle, settings: SessionSettings, encoder: GraphSession) -> TextReader | None:
    """The text encoder of `bundle`, None where it has none; BundleError where it does not fit."""
    if "text_encoder" not in bundle.manifest.graphs:
        return None
    return TextReader(open_session(bundle, "text_encoder", settings), encoder)
