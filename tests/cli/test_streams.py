"""Standard output carries results and nothing else, whatever fails, whoever writes, and whatever it is connected to."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from textwrap import indent

import pytest
from kube import ControlPlane
from testing.command import Node, Said
from testing.processes import COMMAND
from testing.waiting import wait_for

_BURNIN = ("burnin", "--devices", "cpu", "--tests", "exact", "--duration", "1s")
LOCAL = [("check",), ("events",), _BURNIN]
OF_A_CLUSTER = [("fleet",), ("node", "gpu-node-17")]
VERBS = [*LOCAL, *OF_A_CLUSTER]
NAMES = [words[0] for words in VERBS]

NOISE = """
structlog.get_logger().error("a log line")
print("a line of a library")
os.write(1, b"a line of a library in C\\n")
"""


def inject(node: Node, code: str) -> dict[str, str]:
    """An environment in which every Python process runs this code when it starts."""
    folder = node.folder / "injected"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


def before(owner: str, name: str, body: str) -> str:
    """Code that makes a function of a module or of "module:Class" run the body first, in the command's process only."""
    return f"""
import os, pkgutil, sys, structlog
if not any(word.startswith("gpuhealth.") for word in sys.orig_argv):
    owner = pkgutil.resolve_name({owner!r})
    original = getattr(owner, {name!r})
    def injected(*arguments, **options):
{indent(body.strip(), "        ")}
        return original(*arguments, **options)
    setattr(owner, {name!r}, injected)
"""


FAIL = "raise RuntimeError('injected')"


def only_error(said: Said) -> str:
    """The error of a failed run, which must be its only JSON document, and a line of standard error."""
    assert said.code == 3
    (line,) = said.out.splitlines()
    document = json.loads(line)
    assert document.keys() == {"error"}
    assert f"gpuhealth: {document['error']}" in said.err.splitlines()
    return str(document["error"])


@pytest.fixture
def with_journal(gpu_node: Node) -> Node:
    """A node whose agent has left a journal without entries."""
    from gpuhealth.runtime.journal import Journal

    Journal(gpu_node.journal, keep_seconds=1e6, max_entries=1000).close()
    return gpu_node


@pytest.mark.parametrize("words", VERBS, ids=NAMES)
@pytest.mark.parametrize("wrong", [("--bogus",), ("--config", "/absent.yaml"), ("--kubeconfig", "/absent")])
def test_what_cannot_be_done_is_one_document(
    with_journal: Node, words: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    """Wrong options, missing settings or kubeconfig: one document with the error, and exit code 3."""
    assert only_error(with_journal.run(*words, "--json", *wrong))


@pytest.mark.parametrize("words", OF_A_CLUSTER, ids=NAMES[3:])
def test_an_internal_error_in_a_command_for_clusters(plane: ControlPlane, node: Node, words: tuple[str, ...]) -> None:
    """An unexpected exception, or an unknown node, is one document for commands that use a cluster, too."""
    words = (*words, "--json", "--kubeconfig", str(plane.kubeconfig))
    if words[0] == "node":
        assert "no node gpu-node-17" in only_error(node.run(*words))
    else:
        assert "clusters" in node.run(*words).json
    broken = inject(node, before("gpuhealth.kube.client:Client", "from_kubeconfig", FAIL))
    assert only_error(node.run(*words, **broken)).startswith("internal error in gpuhealth")


@pytest.mark.parametrize("words", [("check",), _BURNIN], ids=["check", "burnin"])
def test_nothing_else_reaches_standard_output(gpu_node: Node, words: tuple[str, ...]) -> None:
    """Output of the log, of a Python library and of a C library goes to standard error; only the result does not."""
    said = gpu_node.run(*words, "--json", **inject(gpu_node, before("msgspec.json", "encode", NOISE)))
    assert said.out.count("\n") == 1
    assert "error" not in said.json
    for line in ("error: a log line", "a line of a library", "a line of a library in C"):
        assert line in said.err.splitlines()


@pytest.mark.parametrize(
    "death", ["raise RuntimeError('injected')", "print('noise', flush=True); os._exit(1)", "os.abort()"]
)
def test_an_nvml_process_that_dies(gpu_node: Node, death: str) -> None:
    """However the NVML process ends, standard output holds only the verdict."""
    code = f"""
import os, sys
if any("nvml.child" in word for word in sys.orig_argv):
    import pynvml
    def broken(*_):
        {death}
    pynvml.nvmlDeviceGetCount = pynvml.nvmlDeviceGetCount_v2 = pynvml.nvmlDeviceGetHandleByIndex = broken
"""
    said = gpu_node.run("check", "--json", **inject(gpu_node, code))
    assert said.out.count("\n") == 1
    assert said.json["verdict"] != "healthy"


@pytest.mark.parametrize("words", [("check",), ("capture", "-o", "c.tar.gz")], ids=["check", "capture"])
def test_the_log_of_a_command_is_on_standard_error(gpu_node: Node, words: tuple[str, ...]) -> None:
    """Without --json too, a log line goes to standard error, as text without control characters."""
    noise = """
structlog.get_logger().info("quiet")
structlog.get_logger().error("broken\\x1b[2J", file="a\\x1bb", traceback="one\\ntwo\\x1b")
"""
    noisy = inject(gpu_node, before("gpuhealth.monitors.nvidia.probe:NvidiaProbe", "__init__", noise))
    words = tuple(str(gpu_node.folder / word) if word.endswith("gz") else word for word in words)
    said = gpu_node.run(*words, **noisy)
    assert said.code == 0
    assert "broken" not in said.out
    assert said.err.splitlines() == ["error: broken\\x1b[2J (file: a\\x1bb)", "one", "two\\x1b"]


def at_shell(node: Node, line: str) -> Said:
    """Run a shell command line in which `gpuhealth` is the command."""
    done = subprocess.run(
        ["sh", "-c", line.replace("gpuhealth", str(COMMAND), 1)],
        capture_output=True,
        text=True,
        env=node.env(),
        timeout=300,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("words", ["check", "check --json", "explain 79", "--version", "events --json", "classify -"])
def test_closed_standard_output(gpu_node: Node, words: str) -> None:
    """With standard output closed, the command fails with one sentence and exit code 3, not 1, which means degraded."""
    said = at_shell(gpu_node, f"gpuhealth {words} >&- </dev/null")
    assert (said.code, said.err) == (
        3,
        "gpuhealth: standard output is closed: the result cannot be written\n",
    )


@pytest.mark.parametrize("words", ["check", "check --json", "explain 79", "--version", "--help", "check --jsn --json"])
def test_standard_output_on_a_full_disk(gpu_node: Node, words: str) -> None:
    """A result that cannot be written is an error with exit code 3, whatever the verdict."""
    said = at_shell(gpu_node, f"gpuhealth {words} >/dev/full")
    assert said.code == 3
    assert said.err.splitlines()[-1] == "gpuhealth: cannot write to standard output: No space left on device"
    assert "Traceback" not in said.err


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_standard_error_that_cannot_be_written(gpu_node: Node, redirection: str) -> None:
    """With standard error closed or full, exit code and result do not change."""
    assert at_shell(gpu_node, f"gpuhealth check --config /absent {redirection}").code == 3
    said = at_shell(gpu_node, f"gpuhealth check --json {redirection}")
    assert (said.code, said.json["verdict"]) == (0, "healthy")
    assert only_json(at_shell(gpu_node, f"gpuhealth check --json --config /absent {redirection}")).keys() == {"error"}


def only_json(said: Said) -> dict[str, str]:
    """Standard output as exactly one JSON document."""
    assert said.out.count("\n") == 1
    document: dict[str, str] = json.loads(said.out)
    return document


def test_closed_standard_input(node: Node) -> None:
    """`classify` reports that standard input is closed."""
    said = at_shell(node, "gpuhealth classify <&-")
    assert (said.code, said.err) == (3, "gpuhealth: standard input is closed: name a file, or pipe a log in\n")


@pytest.mark.parametrize("size", ["²", "9" * 5000, "-1", "0", "x", "", "1e9", "٣"])
@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
def test_invalid_sizes_are_ignored(node: Node, name: str, size: str) -> None:
    """An invalid width or height in the environment is ignored."""
    said = node.run("explain", "79", **{name: size})
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("XID 79")


@pytest.mark.parametrize("descriptors", [7, 8, 9, 10])
def test_no_file_descriptors_left(gpu_node: Node, descriptors: int) -> None:
    """With almost no file descriptors, the result is one document that names the reason, with exit code 3."""
    said = at_shell(gpu_node, f"ulimit -n {descriptors}; exec gpuhealth check --json")
    assert said.code == 3
    assert said.json.get("verdict", "unknown") == "unknown"
    assert "Too many open files" in said.out
    assert "Traceback" not in said.err


def score(pid: int) -> int:
    """The OOM score adjustment of a process."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("check",), 1000),
        (("capture", "-o", "c.tar.gz", "--rounds", "1000"), 1000),
        (("classify",), 1000),
        (_BURNIN, 1000),
        ((*_BURNIN, "--reason", "preflight"), None),
        (("agent",), None),
    ],
    ids=["check", "capture", "classify", "burnin", "preflight", "agent"],
)
def test_which_process_is_killed_when_memory_runs_out(
    gpu_node: Node, words: tuple[str, ...], wanted: int | None
) -> None:
    """A command run by hand and its children are killed before the agent; services and their burn-ins are not."""
    assert gpu_node.simulator
    gpu_node.configure("http: {host: 127.0.0.1, port: 0}\nkubernetes: {enabled: false}\n"
                       f"burnin: {{results_dir: {gpu_node.folder}}}")  # fmt: skip
    gpu_node.simulator.inject("hang")  # a check is under way until we have looked
    words = tuple(str(gpu_node.folder / word) if word.endswith("gz") else word for word in words)
    with subprocess.Popen(
        [COMMAND, *words], env=gpu_node.env(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            expected = score(os.getpid()) if wanted is None else wanted
            with_children = words[0] not in ("classify", "burnin")
            wait_for("the command", lambda: b"gpuhealth" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
            wait_for("its children", lambda: children(process.pid) or not with_children)
            wait_for("the score", lambda: score(process.pid) == expected)
            assert {score(child) for child in children(process.pid)} <= {expected}
        finally:
            process.kill()
            gpu_node.simulator.release()


def test_a_score_that_cannot_be_raised(node: Node) -> None:
    """A score that cannot be written causes no message, and the command works."""
    code = "import pathlib, gpuhealth.cli.oom as oom\noom._SCORE = pathlib.Path('/proc/self/absent/oom_score_adj')\n"
    said = node.run("explain", "79", **inject(node, code))
    assert (said.code, said.err) == (0, "")
