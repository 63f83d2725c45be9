"""`gpuhealth check` on this machine, and a capture of it that is judged alike elsewhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpuproof.step import Context, Done, Outcome, disproved, not_proved, proved

_EXIT_CODES = {"healthy": 0, "degraded": 1, "unhealthy": 2, "unknown": 3}
CAPTURE = "capture.tar.gz"


def check(context: Context) -> Outcome:
    """Proved where the check gives a verdict; what it could not check is listed with the reason."""
    done = context.gpuhealth("check", "--json")
    context.save("check.json", done.out)
    document = _document(done)
    if document is None:
        return disproved(f"check gave no verdict: {done.problem}")
    verdict, gpus = document["verdict"], len(document.get("gpus", ()))
    if done.code != _EXIT_CODES[verdict]:
        return disproved(f"exit code {done.code} with the verdict {verdict}")
    reasons = Counter(f"{each['check']}: {each['reason']}" for each in document["coverage"]["not_checked"])
    lines = [f"not checked ({count}): {reason}" for reason, count in reasons.most_common()]
    found = sorted({finding["code"] for finding in document["findings"]})
    lines[:0] = [f"finding: {code}" for code in found]
    checked = len(document["coverage"]["checked"])
    sentence = f"{gpus} GPUs, verdict {verdict}, {checked} codes checked"
    facts = {"verdict": verdict, "findings": found, "not_checked": dict(reasons), "codes_checked": checked}
    return (proved if verdict != "unknown" else not_proved)(sentence, *lines, **facts)


def replay(context: Context) -> Outcome:
    """Proved where a capture, judged again from its file alone, has the verdict and findings of a check now."""
    path = context.folder / CAPTURE
    done = context.gpuhealth("capture", "-o", str(path), "--force")
    if done.code:
        return not_proved(f"capture failed: {done.problem}")
    live, again = (_document(context.gpuhealth("check", "--json", *more)) for more in ((), ("--replay", str(path))))
    if live is None or again is None:
        return disproved("check or its replay gave no verdict")
    here, there = _gist(live), _gist(again)
    size = path.stat().st_size
    if here != there:
        return disproved("the replay of a capture differs from a check", f"check: {here}", f"replay: {there}")
    return proved(f"a capture of {size} bytes gives the same verdict, {live['verdict']}", bytes=size)


def _document(done: Done) -> Any:
    found = done.json
    return found if isinstance(found, dict) and found.get("verdict") in _EXIT_CODES else None


def _gist(document: Any) -> tuple[str, list[str]]:
    findings = {f"{each['code']} {each['component']['id']}" for each in document["findings"]}
    return document["verdict"], sorted(findings)
