"""tools/README.md, the guide for those who change the code: the files that it names exist."""

from __future__ import annotations

import re

import pytest
from testing.paths import BASE

ROOT = BASE.parent
GUIDE = (ROOT / "tools/README.md").read_text(encoding="utf-8")
_NAMED = re.compile(r"`([\w./-]+\.(?:py|c|h|yaml))`|\]\(([\w./-]+)\)")
FILES = sorted({path or link for path, link in _NAMED.findall(GUIDE)})


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_the_guide_exists(file: str) -> None:
    """A path may be short, such as `catalog/xid.py`; one with a word in capitals stands for files to come."""
    if re.search(r"[A-Z]{4,}", file.replace("README", "")):
        return
    found = (ROOT / "tools" / file).exists() or any(ROOT.glob(file)) or any(ROOT.glob(f"*/**/{file}"))
    assert found, f"tools/README.md names {file}, which does not exist: change the guide with the code"
