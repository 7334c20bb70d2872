"""Runs a chat template, a program in Jinja, in a sandbox, with what Transformers lets templates use.

A template comes with a bundle and may be anybody's: it reaches no file and no object but plain values, and its size,
its time and its output are bounded. It needs the package jinja2. It knows no message and no model.
https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from xattn_runtime.errors import DependencyError

if TYPE_CHECKING:
    from jinja2 import Environment, Template, nodes
    from jinja2.parser import Parser

__all__ = ["MOST_CHARACTERS", "SafeTemplate", "TemplateFailure", "compile_template"]

MOST_CHARACTERS = 65_536
"""Of a template."""

_OLDEST = (3, 1, 6)  # those before let templates out of the sandbox
_LONGEST_S = 5.0
_LONGEST_TEXT = 1_000_000
_LONGEST_RANGE = 10_000
_INTERCEPTED = frozenset({"+", "*", "**", "%"})
_WIDE = re.compile(r"\*|\d{5}")  # what pads a text to a width of many thousands


class TemplateFailure(Exception):
    """A template that cannot be compiled, fails, or goes beyond its bounds."""


@dataclass(frozen=True)
class SafeTemplate:
    """A compiled template."""

    template: Template

    def render(self, variables: Mapping[str, Any]) -> str:
        """What it writes; TemplateFailure where it fails, or takes too long or writes too much."""
        pieces: list[str] = []
        length = 0
        try:
            with _deadline(_LONGEST_S):
                for piece in self.template.generate(dict(variables)):
                    length += len(piece)
                    if length > _LONGEST_TEXT:
                        raise TemplateFailure(f"it writes more than {_LONGEST_TEXT:,} characters")
                    pieces.append(piece)
        except TemplateFailure:
            raise
        except Exception as error:  # a template may fail in any way
            raise TemplateFailure(f"{type(error).__name__}: {error}") from error
        return "".join(pieces)


def compile_template(source: str) -> SafeTemplate:
    """The template, ready to render.

    Raises TemplateFailure where it is no template, DependencyError where jinja2 is missing or too old.
    """
    jinja2 = _jinja2()
    try:
        return SafeTemplate(_environment().from_string(source))
    except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
        raise TemplateFailure(f"{type(error).__name__}: {error}") from error


def _jinja2() -> Any:
    """The package; DependencyError where there is none, or one with known ways out of its sandbox."""
    try:
        import jinja2
    except ImportError as error:
        raise DependencyError(
            "this model's chat template is a program in Jinja: expected the package jinja2, found none; "
            'pip install "xattn-edge[chat]"'
        ) from error
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise DependencyError(
            f"jinja2: expected {oldest} or newer, whose sandbox is safe, found {jinja2.__version__}; "
            'pip install --upgrade "xattn-edge[chat]"'
        )
    return jinja2


def _environment() -> Environment:
    from jinja2 import ext, sandbox
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.utils import Namespace

    class Bounded(sandbox.ImmutableSandboxedEnvironment):
        """A sandbox in which no operator makes something huge of something small."""

        intercepted_binops = _INTERCEPTED

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if not _is_small(operator, left, right):
                raise SecurityError(f"it computes {operator} of something too large")
            return super().call_binop(context, operator, left, right)

    class Generation(ext.Extension):
        """`{% generation %}`, which marks what the model says, for training; the text in it stands as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class SafeNamespace(Namespace):
        """`namespace`, whose names begin with no underscore."""

        def __init__(*args: Any, **names: Any) -> None:
            Namespace.__init__(args[0], {})
            for name, value in dict(*args[1:], **names).items():
                args[0][name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if str(name).startswith("_"):
                raise SecurityError(f"it sets the name {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=_now, dict=_dictionary, namespace=SafeNamespace, range=_range
    )
    return environment


def _is_small(operator: str, left: Any, right: Any) -> bool:
    """Whether the result of `+`, `*`, `**` or `%` can be made at all."""
    if operator == "+":
        return not hasattr(left, "__len__") or not hasattr(right, "__len__") or len(left) + len(right) <= _LONGEST_TEXT
    if operator == "%":
        return not isinstance(left, str) or not _WIDE.search(left)
    sizes = [len(value) if hasattr(value, "__len__") else abs(value) for value in (left, right)]
    if operator == "**":
        return bool(sizes[0] <= _LONGEST_RANGE and sizes[1] <= 64)
    is_repeated = any(hasattr(value, "__len__") for value in (left, right))
    return not is_repeated or bool(sizes[0] * sizes[1] <= _LONGEST_TEXT)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _dictionary(*pairs: Any, **values: Any) -> dict[Any, Any]:
    return dict(*pairs, **values)


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > _LONGEST_RANGE:
        raise OverflowError(f"it counts to more than {_LONGEST_RANGE:,}")
    return numbers


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """TemplateFailure in the code inside, at the next line that it runs, once `seconds` are over."""
    end = time.monotonic() + seconds

    def check(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise TemplateFailure(f"it runs for more than {seconds:g} s")
        return check

    before = sys.gettrace()
    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)
