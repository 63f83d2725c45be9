"""Writes daemonset/admission/README.md: what stolen tokens can do. Usage: python tools/attack_table.py

The rows are those of testing/attacks, which tests/quarantine/test_attacks.py sends to an API server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from testing.attacks import ROWS, SUBJECTS
from testing.attacks.row import Row

FILE = Path(__file__).parents[1] / "daemonset/admission/README.md"
COMMAND = "python tools/attack_table.py"
_HEAD = f"""# What a stolen token can do

Made from the tests by `{COMMAND}`; changes made here are lost.

Each row is a request that a test sends to an API server with the policies of this folder in force, with a token of that
account that is bound to a pod of its node, as pods get them. The last column names what refuses it: a policy, RBAC (the
roles in `daemonset/` do not grant it), or the API server itself. Where a row has two requests, the first one is
allowed. The policies are those for `mode: cordon`, in which an agent may do the most; MINE is the node of the token's
pod.

"""


def text() -> str:
    """The whole document in Markdown."""
    return "".join([_HEAD, _summary(), *(part for title, rows in SUBJECTS.items() for part in _section(title, rows))])


def _summary() -> str:
    counts = Counter("policies" if row.refused_by.startswith("gpuhealth-") else row.refused_by for row in ROWS)
    return (
        f"{len(ROWS)} rows: {counts['policies']} are refused by policies, {counts['RBAC']} by RBAC,"
        f" {counts['API server']} by the API server, and {counts['']} are allowed, with the reason.\n"
    )


def _section(title: str, rows: list[Row]) -> Iterator[str]:
    yield f"\n## {title}\n\n| who | what | result |\n| --- | --- | --- |\n"
    for row in rows:
        result = f"refused: {row.refused_by}" if row.refused_by else f"allowed: {row.why}"
        yield f"| {row.who} | {row.what} | {result} |\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
