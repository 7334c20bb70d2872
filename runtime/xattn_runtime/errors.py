"""Every error that this package raises on purpose, with its exit code; what those of the system mean to a user.

XattnError                  ours, or a check that failed: exit code 1
├── VerificationError       golden inputs came out differently
└── UserError               the user's mistake: exit code 2
    ├── ImageError          an image that is missing, broken, too large
    ├── QuestionError       a question that is empty, too long, of no known word
    ├── AudioError          speech of another rate or length, or that is no sound
    ├── BundleError         a bundle that is missing, damaged, of another schema
    ├── ProviderError       an execution provider that is unknown, missing or unusable
    ├── CheckpointError     a checkpoint that is missing, damaged, of another kind
    ├── IndexFileError      an index of images that is missing, damaged, of another bundle
    ├── DataError           a data set that is missing or damaged
    ├── OutputError         an output that exists, cannot be written, does not fit
    └── DependencyError     a package that this command needs is not installed

A message names what, where, expected and found, and what to do; it never holds a line break.
"""

from __future__ import annotations

import errno
import re
from typing import ClassVar

__all__ = [
    "AudioError",
    "BundleError",
    "CheckpointError",
    "DataError",
    "DependencyError",
    "ImageError",
    "IndexFileError",
    "OutputError",
    "ProviderError",
    "QuestionError",
    "UserError",
    "VerificationError",
    "XattnError",
    "advice_on",
    "problem",
]


_MOST_CHARACTERS, _MOST_BEGUN = 2000, 1500
# What to do where the system refuses a file, and that is the user's affair.
_ADVICE = {
    errno.EACCES: "check its permissions and those of its folder",
    errno.EDQUOT: "free some space or name another place",
    errno.EEXIST: "name another place",
    errno.EISDIR: "name a file",
    errno.ELOOP: "check the links in it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free some space or name another place",
    errno.ENOTDIR: "check the path",
    errno.EPERM: "check its permissions and those of its folder",
    errno.EROFS: "name another place",
}


class XattnError(Exception):
    """Root of the hierarchy. `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        """The message on one line, without control characters, and no longer than somebody reads."""
        text = re.sub(r"\s*[\r\n]\s*", " ", super().__str__().strip())
        if not text.isprintable():
            text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
        if len(text) > _MOST_CHARACTERS:
            text = f"{text[:_MOST_BEGUN]} … {text[_MOST_BEGUN - _MOST_CHARACTERS :]}"
        return text


class VerificationError(XattnError):
    """A bundle does not compute what its golden cases say."""


class UserError(XattnError):
    """A mistake that the user can correct."""

    exit_code: ClassVar[int] = 2


class ImageError(UserError):
    """An image cannot be used."""


class QuestionError(UserError):
    """A question cannot be used."""


class AudioError(UserError):
    """Speech cannot be used."""


class BundleError(UserError):
    """A bundle cannot be used."""


class ProviderError(UserError):
    """An execution provider cannot be used."""


class CheckpointError(UserError):
    """A checkpoint cannot be used."""


class IndexFileError(UserError):
    """An index of images cannot be used."""


class DataError(UserError):
    """A data set cannot be used."""


class OutputError(UserError):
    """An output cannot be written."""


class DependencyError(UserError):
    """A package that is needed is not installed."""


def advice_on(error: OSError) -> str | None:
    """What to do about a file that the system refuses; None where that is no affair of the user's."""
    return _ADVICE.get(error.errno or 0)


def problem(error: Exception) -> str:
    """Why a file cannot be used, as the system says it but without its name, and what to do about it."""
    reason, advice = "", "check the path"
    if isinstance(error, OSError):
        reason, advice = error.strerror or "", advice_on(error) or advice
    return f"{reason or ' '.join(str(error).split()) or type(error).__name__}; {advice}"
