"""What a prompt is about: an image, several images, or the frames of a video, encoded as one.

It puts together what the image encoder gives for each. What is written for them is known elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np

from xattn_runtime.bundle.folder import Bundle
from xattn_runtime.errors import BundleError, ImageError, UserError
from xattn_runtime.preprocess.pipeline import Pipeline, Tiles
from xattn_runtime.preprocess.prompts.video import Video
from xattn_runtime.preprocess.tokenizer import PromptImages
from xattn_runtime.tasks.shared.image_encoder import EncodedImage, ImageReader, milliseconds_since
from xattn_runtime.tasks.shared.kept import KeptPrompts

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

    Seen: TypeAlias = "ImageInput | EncodedImage | Video | Sequence[ImageInput | EncodedImage]"

__all__ = ["PromptReader", "kept_with"]

_FRAMES_OF_A_RUN = 4


class PromptReader:
    """Encodes what prompts are about, with the image encoder of one bundle."""

    def __init__(self, bundle: Bundle, images: ImageReader) -> None:
        """`images` is what encodes one; BundleError where frames would come out in another size."""
        self._images = images
        self._layout = bundle.manifest.tokenizer.image_layout
        self._video = bundle.manifest.tokenizer.video_layout
        steps = bundle.manifest.video_steps
        self._frames = None if steps is None else Pipeline(steps)
        if (self._frames is None) != (self._video is None):
            raise BundleError(
                f"{bundle.path}: expected preprocessing of videos together with a video_layout, found one of the two; "
                "export it again"
            )
        if self._frames is not None and self._frames.size_px != (size := Pipeline(bundle.manifest.image_steps).size_px):
            raise BundleError(
                f"{bundle.path}: expected frames of a video of {list(size)} pixels, as images are, found "
                f"{list(self._frames.size_px)}; export it again"
            )

    def check(self, seen: Seen) -> None:
        """What is wrong with the number of images or frames, before any is opened.

        UserError for more than the model takes, or none, and for a video where it takes none.
        """
        if isinstance(seen, Video):
            count = len(seen.clock().times_s)
            if self._video is None:
                raise UserError(
                    "video: expected images, as this model takes no videos, found one; ask about some of its frames"
                )
            if count > (most := self._video.most_frames):
                raise UserError(f"video: expected at most {most} frames, found {count}; leave some out")
        elif isinstance(seen, list | tuple):
            most = 1 if self._layout is None else self._layout.most_images
            if not seen:
                raise UserError("images: expected one or more, found none")
            if len(seen) > most:
                raise UserError(
                    f"images: expected {f'at most {most}' if most > 1 else 'one'}, as this model takes in a question, "
                    f"found {len(seen)}; ask about fewer"
                )

    def encoded(self, seen: Seen) -> EncodedImage:
        """All that is seen, as one; what is encoded already, as it is.

        Raises ImageError where one of the images cannot be used, UserError as `check` does.
        """
        self.check(seen)
        if isinstance(seen, Video):
            return self._encoded_video(seen)
        if not isinstance(seen, list | tuple):
            return self._images.encoded(cast("ImageInput | EncodedImage", seen))
        for number, one in enumerate(seen, 1):
            if isinstance(one, EncodedImage) and (len(one.images.grids) > 1 or one.images.clock is not None):
                raise ImageError(f"image {number} of {len(seen)}: expected one image, found several encoded as one")
        return _joined(list(self._images.encode_many(seen)))

    def _encoded_video(self, video: Video) -> EncodedImage:
        clock, frames = video.clock(), self._frames
        if frames is None:
            raise UserError("video: expected images, as this model takes no videos, found one")
        encoded = []
        for start in range(0, len(video.frames), _FRAMES_OF_A_RUN):
            began = time.perf_counter()
            pixels = [
                _pixels(frames, frame, number, len(video.frames))
                for number, frame in enumerate(video.frames[start : start + _FRAMES_OF_A_RUN], start + 1)
            ]
            prepared_ms = milliseconds_since(began)
            tiles = Tiles(np.stack(pixels), 0, 0)
            encoded.append(self._images.encode_tiles(tiles, prepared_ms))
        grids = PromptImages().grids * len(video.frames)
        return replace(_joined(encoded), images=PromptImages(grids, clock))


def kept_with(encoded: EncodedImage) -> EncodedImage:
    """The same, with which what is computed of prompts about it is kept."""
    return encoded if encoded.prompts is not None else replace(encoded, prompts=KeptPrompts())


def _pixels(pipeline: Pipeline, frame: ImageInput, number: int, count: int) -> np.ndarray:
    try:
        return pipeline(frame)
    except ImageError as error:
        raise ImageError(f"frame {number} of {count}: {error}") from error


def _joined(encoded: Sequence[EncodedImage]) -> EncodedImage:
    """The image tokens of all, one after the other."""
    if len(encoded) == 1:
        return encoded[0]
    tensors = {name: np.concatenate([one.tensors[name] for one in encoded], axis=1) for name in encoded[0].tensors}
    grids = tuple(grid for one in encoded for grid in one.images.grids)
    return EncodedImage(
        tensors,
        sum(one.preprocess_ms for one in encoded),
        sum(one.encode_ms for one in encoded),
        PromptImages(grids),
    )
