"""tools/prose.py: docstrings that say too little, whose number may only fall, and words that are denied."""

from __future__ import annotations

from pathlib import Path

import prose
import pytest


@pytest.mark.parametrize(
    "docstring", ["Prints it.", "Of the pod.", "The same for the commands that ask an API server."]
)
def test_a_docstring_that_says_too_little(docstring: str) -> None:
    """Fewer than four words, or a reference to another docstring, are found with their line."""
    source = f'"""A module."""\n\ndef show() -> None:\n    """{docstring}"""\n'
    assert list(prose.poor(source)) == [(3, docstring)]


@pytest.mark.parametrize(
    "source",
    [
        'def show() -> None:\n    """Prints the findings as a table."""',
        'def _show() -> None:\n    """Prints it."""',
        "def show() -> None: ...",
        '"""Short."""',
    ],
    ids=["it says enough", "it is private", "there is none", "it is a module's"],
)
def test_a_docstring_that_does_not_count(source: str) -> None:
    """Public functions and classes alone are looked at; a docstring that is missing is for ruff to find."""
    assert list(prose.poor(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        'def run() -> None:\n    """Starts anew after an error."""\n',
        "x = 1  # the kernel tells it\n",
        'def run() -> None:\n    """A summary.\n\n    The driver is to be released.\n    """\n',
        'class Pod:\n    """Let go by the agent."""\n',
    ],
    ids=["docstring", "comment", "later line", "class"],
)
def test_a_denied_word_is_found(source: str) -> None:
    """Docstrings and comments are searched, on every line of them."""
    (place,) = prose.denied(source)
    assert prose.DENIED.search(place[1])


def test_code_and_strings_may_have_denied_words() -> None:
    """A variable, or a string that a program prints, is not searched."""
    assert list(prose.denied('told = "anew"\n\n\ndef tells() -> str:\n    return told\n')) == []


def test_classes_and_methods_are_looked_at() -> None:
    """A class and a coroutine in it count each."""
    source = 'class Pod:\n    """A pod."""\n\n    async def run(self) -> None:\n        """Until cancelled."""\n'
    assert [line for line, _ in prose.poor(source)] == [1, 4]


def test_places_are_named(tmp_path: Path) -> None:
    """Each is listed with file and line, by the folder that it is in."""
    for folder in prose.ALLOWED:
        (tmp_path / folder).mkdir()
    (tmp_path / "tools" / "late.py").write_text('def show() -> None:\n    """Prints it."""\n', encoding="utf-8")
    places = {folder: listed for folder, listed in prose.found(tmp_path).items() if listed}
    assert places == {"tools": ["tools/late.py:1: Prints it."]}


def test_the_number_may_only_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than allowed is refused, and fewer asks for the lower number, so that it never rises again."""
    monkeypatch.setitem(prose.ALLOWED, "tools", 2)
    assert prose.verdict("tools", 2) == ""
    assert "3 docstrings say too little, 2 are allowed" in prose.verdict("tools", 3)
    assert prose.verdict("tools", 1).endswith("set ALLOWED in tools/prose.py to 1.")


def test_the_repository_has_no_more_than_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole repository passes."""
    assert prose.main() == 0, capsys.readouterr().err
