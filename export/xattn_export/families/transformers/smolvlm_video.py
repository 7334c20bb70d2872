"""How SmolVLM2's processor takes the frames of a video, as data: their size, and what it writes for them.

A frame is an image that is not cut. What stands around it is what `SmolVLMProcessor` itself holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xattn_export.families.checkpoint_folder.chat_prompt import question_template_of
from xattn_export.families.checkpoint_folder.json_files import read_json
from xattn_runtime.errors import CheckpointError
from xattn_runtime.json_reader import show
from xattn_runtime.preprocess.prompts.video import MOST_FRAMES, VideoLayout
from xattn_runtime.preprocess.steps import Resize, ResizeLongestEdge, Step, Tile

__all__ = ["VideoParts", "video_of"]

_DEFAULT_MOST_FRAMES = 64
_DEFAULT_LONGEST_PX = 4 * 364


@dataclass(frozen=True)
class VideoParts:
    """What a bundle says of videos.

    steps: preprocessing of a frame. layout: how a video is written. token: what the chat template writes for one.
    template: the chat template of conversations about a video.
    """

    steps: tuple[Step, ...]
    layout: VideoLayout
    token: str
    template: str


def video_of(folder: Path, steps: Sequence[Step], tokenizer: Any) -> VideoParts | None:
    """What the processor in `folder` does with videos; None where its settings have none.

    Args:
        steps: preprocessing of an image.

    Raises:
        CheckpointError: settings of another kind.
    """
    from transformers.models.smolvlm import processing_smolvlm as smolvlm

    path, settings = _settings(folder)
    if settings is None:
        return None
    sampling = settings.get("video_sampling") or {}
    size = sampling.get("video_size", settings.get("size", {"longest_edge": _DEFAULT_LONGEST_PX}))
    most = sampling.get("max_frames", settings.get("num_frames")) or _DEFAULT_MOST_FRAMES
    if not isinstance(size, Mapping) or not isinstance(size.get("longest_edge"), int):
        raise CheckpointError(f"{path}: video_size: expected longest_edge, found {show(size)}")
    if not isinstance(most, int) or not 1 <= most <= MOST_FRAMES:
        raise CheckpointError(f"{path}: max_frames: expected 1 to {MOST_FRAMES}, found {show(most)}")
    token = getattr(tokenizer, "video_token", "<video>")
    template: str = smolvlm.DEFAULT_CHAT_TEMPLATE
    question = question_template_of(folder, template, tokenizer.apply_chat_template, token, "video")
    intro = smolvlm.DEFAULT_VIDEO_INTRO.format(frame_count="{count}", video_duration="{duration}")
    frame = smolvlm.FRAME_TIMESTAMP_MESSAGE.format(timestamp="{time}") + "{image}"
    layout = VideoLayout(question, intro, frame, smolvlm.DEFAULT_MEDIA_OUTTRO, most)
    return VideoParts(_frame_steps(steps, size["longest_edge"]), layout, token, template)


def _settings(folder: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """The video processor's settings and their file, where Transformers looks for them; None where there are none."""
    for name, key in (
        ("processor_config.json", "video_processor"),
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", "video_sampling"),
    ):
        path = folder / name
        values = read_json(path) if path.is_file() else {}
        if values and (key is None or key in values):
            return path, values[key] if key == "video_processor" else values
    return folder / "preprocessor_config.json", None


def _frame_steps(steps: Sequence[Step], longest_px: int) -> tuple[Step, ...]:
    """Those of an image, with the longest edge of a frame, and a square in the place of tiles."""
    frame: list[Step] = []
    for step in steps:
        if isinstance(step, ResizeLongestEdge):
            frame.append(ResizeLongestEdge(longest_px, step.filter, multiple_px=step.multiple_px))
        else:
            frame.append(Resize(step.side_px, step.side_px, step.filter) if isinstance(step, Tile) else step)
    return tuple(frame)
