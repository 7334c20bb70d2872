"""The examples of docs/mechanisms.md, run as they stand there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "mechanisms.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_begins_with_the_call_of_queries_keys_and_values(capsys):
    example = EXAMPLES[0]
    assert "attention(q, k, v)" in example
    exec(compile(example, str(PAGE), "exec"), {})
    expected = re.findall(r"print\(.*?\)  # (.*)", example)
    assert len(expected) == 2
    assert capsys.readouterr().out.splitlines() == expected


def test_the_model_of_the_page_can_be_built():
    names = {}
    exec(compile(EXAMPLES[1], str(PAGE), "exec"), names)
    assert names["model"].config == names["config"]
