"""easy-VQA: questions about one coloured shape, with the official split (MIT, Victor Zhou, package `easy-vqa`)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from xattn_runtime.errors import DataError, DependencyError

__all__ = ["SPLITS", "EasyVqa", "VqaSample"]

SPLITS = ("train", "test")


@dataclass(frozen=True)
class VqaSample:
    """A question about the image at `image`, and its answer."""

    image: Path
    question: str
    answer: str


class EasyVqa:
    """The data set as the installed package carries it: 64×64 images, 13 answers.

    Raises:
        DependencyError: the package is not installed.
    """

    def __init__(self) -> None:
        try:
            import easy_vqa
        except ModuleNotFoundError as error:
            raise DependencyError('`easy-vqa` is not installed; run `pip install "xattn-edge[data]"`') from error
        self.answers: tuple[str, ...] = tuple(easy_vqa.get_answers())
        self._splits = {
            "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
            "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
        }

    def samples(self, split: str) -> list[VqaSample]:
        """All questions of a split; those of one image stand together.

        Raises:
            DataError: an unknown split, or an image that is missing.
        """
        if split not in self._splits:
            raise DataError(f"easy-vqa: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        read_questions, read_paths = self._splits[split]
        paths = read_paths()
        by_image = defaultdict(list)
        for question, answer, image in zip(*read_questions(), strict=True):
            if image not in paths:
                raise DataError(f"easy-vqa: image {image} of the {split} split is missing; install easy-vqa again")
            by_image[image].append(VqaSample(Path(paths[image]), question, answer))
        return [sample for image in sorted(by_image) for sample in by_image[image]]
