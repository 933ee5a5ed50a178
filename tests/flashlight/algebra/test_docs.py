"""docs/algebra.md says what the program says."""

from __future__ import annotations

from docs import generate_algebra


def test_the_page_is_up_to_date():
    text = generate_algebra.PAGE.read_text()
    assert generate_algebra.again(text) == text, "run docs/generate_algebra.py"
    assert {m[2] for m in generate_algebra.MARKED.finditer(text)} == generate_algebra.generated().keys()
