"""What tests share stands in tools/testing: no test imports another or a benchmark, and the support imports neither."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from testing.paths import ROOT

SUPPORT = ("testing", "kube", "nvmlsim")
APART = {"tests", "benchmarks", "demonstration"}


def imported(source: str) -> Iterator[str]:
    """The modules that a source imports, wherever it does, and those of the programs in its strings."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, level=level):
                yield "." * level + (module or "")
            case ast.Constant(value=str(text)) if "import" in text:
                try:
                    yield from imported(text)
                except (SyntaxError, ValueError):  # no program
                    continue


def test_imports_are_found() -> None:
    """At the top, in a function, and in the program of another process; relative ones too."""
    program = 'PROGRAM = "import g\\nprint(1)"\nTEXT = "to import"'
    relative = "from . " + "import e"
    assert set(imported(f"import a.b\ndef f():\n    from c import d\n    {relative}\n{program}")) == {
        "a.b",
        "c",
        ".",
        "g",
    }


def test_no_test_and_no_support_imports_a_test_or_a_benchmark() -> None:
    """Else a test's file cannot change alone, and the figures of a benchmark depend on tests."""
    files = [ROOT / "tests", *(ROOT / "tools" / folder for folder in SUPPORT)]
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for folder in files
        for file in sorted(folder.rglob("*.py"))
        for name in imported(file.read_text(encoding="utf-8"))
        if name.startswith(".") or name.partition(".")[0] in APART
    ]
    assert wrong == []
