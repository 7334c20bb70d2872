"""The frames of a video with their times, and how they are written in a prompt.

It reads no file of a video: whoever has one takes frames out of it, with their times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any

from xattn_runtime.arguments import found
from xattn_runtime.errors import UserError
from xattn_runtime.json_reader import ObjectReader, show

if TYPE_CHECKING:
    from xattn_runtime.preprocess.image import ImageInput

__all__ = ["MOST_FRAMES", "Video", "VideoClock", "VideoLayout", "read_video_layout"]

MOST_FRAMES = 768
"""No bundle takes more: the number is written out in words."""

_LONGEST_S = 10**6
# fmt: off
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
_TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class VideoClock:
    """When each frame of a video is seen, and how long the video lasts, in seconds."""

    times_s: tuple[float, ...]
    duration_s: float


@dataclass(frozen=True)
class Video:
    """Frames of a video.

    frames: images, in order. times: when each is seen, in seconds from the beginning.
    duration: of the whole video, in seconds; by default the time of the last frame.
    """

    frames: Sequence[ImageInput]
    times: Sequence[float]
    duration: float | None = None

    def clock(self) -> VideoClock:
        """The times, checked; UserError where there is no frame, or not one time for each, in order."""
        if isinstance(self.frames, str | bytes) or not isinstance(self.frames, Sequence) or not len(self.frames):
            raise UserError(f"video: expected a list of frames, one or more, found {found(self.frames)}")
        times = _numbers("times", self.times)
        if len(times) != len(self.frames):
            raise UserError(f"times: expected one for each of {len(self.frames)} frames, found {len(times)}")
        if any(later < earlier for earlier, later in pairwise(times)):
            raise UserError(f"times: expected them in order, found {show(list(times))}; sort the frames by time")
        duration = times[-1] if self.duration is None else _numbers("duration", [self.duration])[0]
        if duration < times[-1]:
            raise UserError(
                f"duration: expected at least {times[-1]:g}, the time of the last frame, found {duration:g}"
            )
        return VideoClock(times, duration)


@dataclass(frozen=True)
class VideoLayout:
    """How a video is written in a text.

    template: the model's input for a question about a video, with `{video}` and `{question}` in their places.
    intro: what is written before the frames, with `{count}`, how many there are, in English words, and `{duration}`,
        as hours:minutes:seconds.
    frame: what is written for each, with `{time}`, as minutes:seconds, and `{image}`, an image that is not cut.
    outro: what is written after them.
    most_frames: the most frames that the model takes.
    """

    template: str
    intro: str
    frame: str
    outro: str
    most_frames: int

    def text(self, clock: VideoClock, image: str) -> str:
        """What is written for a video; `image`: for one of its frames."""
        count, duration = _in_words(len(clock.times_s)), str(timedelta(seconds=int(clock.duration_s)))
        intro = self.intro.replace("{count}", count).replace("{duration}", duration)
        return intro + "".join(self._frame(time, image) for time in clock.times_s) + self.outro

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def _frame(self, time_s: float, image: str) -> str:
        minutes, seconds = divmod(int(time_s), 60)
        return self.frame.replace("{time}", f"{minutes:02d}:{seconds:02d}").replace("{image}", image)


def read_video_layout(reader: ObjectReader) -> VideoLayout:
    """The manifest's `video_layout`; BundleError for a key that is missing, unknown or of a wrong value."""
    layout = VideoLayout(
        template=reader.template("template", "{video}", "{question}"),
        intro=reader.template("intro"),
        frame=reader.template("frame", "{image}"),
        outro=reader.template("outro"),
        most_frames=reader.integer("most_frames", minimum=1),
    )
    if layout.most_frames > MOST_FRAMES:
        reader.fail("most_frames", f"at most {MOST_FRAMES}", layout.most_frames)
    reader.finish()
    return layout


def _numbers(name: str, values: object) -> tuple[float, ...]:
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise UserError(f"{name}: expected a list of seconds, found {found(values)}")
    numbers = []
    for value in values:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        if not 0 <= number <= _LONGEST_S:
            raise UserError(f"{name}: expected 0 to {_LONGEST_S:,} seconds, found {show(value)}")
        numbers.append(number)
    return tuple(numbers)


def _in_words(number: int) -> str:
    """A number below 1,000 in English: `one hundred and twenty-one`."""
    hundreds, rest = divmod(number, 100)
    if rest < len(_ONES):
        words = _ONES[rest]
    else:
        tens, ones = divmod(rest, 10)
        words = _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")
    if not hundreds:
        return words
    return f"{_ONES[hundreds]} hundred" + (f" and {words}" if rest else "")
