"""The reference tables: they are what the code is, and they leave nothing out."""

from __future__ import annotations

import pytest
import reference
from pydantic import BaseModel, Field

from gpuhealth.model.codes import CODES


class Explained(BaseModel):
    """A section whose fields are explained in every way there is."""

    beside: int = 1  # a comment on its line
    spread: int = Field(
        default=2,  # a comment on two
        ge=0,
    )  # of its lines
    below: int = 3
    """A text below it."""
    described: int = Field(default=4, description="A description.")
    alone: int = 5


@pytest.fixture(scope="module")
def made() -> str:
    """The reference as the code makes it now."""
    return reference.text()


def test_the_reference_is_fresh(made: str) -> None:
    """daemonset/reference.md says what the code says now."""
    fresh = reference.FILE.read_text(encoding="utf-8") == made
    assert fresh, f"daemonset/reference.md is stale: run `{reference.COMMAND}`"


def test_every_code_is_listed(made: str) -> None:
    """Every finding code, except those of XIDs and SXids, has a row."""
    names = {code.name for code in CODES.defined()}
    assert {name for name in names if f"\n| `{name}` |" not in made} == set()


def test_a_setting_is_explained_by_comment_text_or_description() -> None:
    """The meaning of a setting is found wherever it is written; a comment may be spread over the lines of its field."""
    meanings = {name: meaning for name, (_, meaning) in reference.explanations(Explained).items()}
    assert meanings == {
        "beside": "a comment on its line",
        "spread": "a comment on two of its lines",
        "below": "A text below it.",
        "described": "A description.",
        "alone": "",
    }
