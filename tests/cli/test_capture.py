"""`gpuhealth capture` and `check --replay`: what was seen on one machine is judged the same on another."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from testing.command import Node, Run, Said

from gpuhealth.agent import capture
from gpuhealth.model.component import NODE
from gpuhealth.model.kernel_event import KernelRecord
from gpuhealth.model.pci import PciAddress
from gpuhealth.monitors.judge import Memory
from gpuhealth.monitors.nvidia.baseline import Baseline
from gpuhealth.runtime.journal import Entry, Journal

GONE = "GPU-99999999-8888-7777-6666-555555555555"
MANIFEST = {"format": 2, "node": "n", "time": "2026-01-01T00:00:00Z", "boot_id": "b", "versions": {}}
READINGS = {"node": "n", "time": "2026-01-01T00:00:00Z", "boot_id": "b", "monitors": {}}


def archive(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """Write a tar.gz; a TarInfo is added as it is."""
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
                continue
            member = tarfile.TarInfo(f"gpuhealth-capture/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def good(**changes: bytes) -> dict[str, bytes | tarfile.TarInfo]:
    """The members of a minimal capture, with changes."""
    members = {"manifest.json": json.dumps(MANIFEST).encode(), "readings.jsonl": json.dumps(READINGS).encode()}
    return {**members, **{name.replace("_", "."): content for name, content in changes.items()}}


def refused(said: Said) -> str:
    """The error of a run that refused a capture, which is one sentence."""
    assert (said.code, said.out) == (3, "")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    return said.err


def test_replay_gives_the_same_verdict_elsewhere(gpu_node: Node, tmp_path: Path) -> None:
    """A replay on a machine without GPUs gives the findings, the node name and the time of the captured node."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("ecc_uncorrectable", gpu=5)
    file = tmp_path / "c.tar.gz"
    said = gpu_node.run("capture", "-o", file)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Wrote {file}: 1 round, ")
    here = gpu_node.run("check", "--json").json
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    replayed = Node(elsewhere).run("check", "--json", "--replay", file, GPUHEALTH_CONFIG="")
    there = replayed.json
    assert replayed.code == 2
    assert (there["node"], there["gpus"]) == (here["node"], here["gpus"])
    assert [each["code"] for each in there["findings"]] == [each["code"] for each in here["findings"]]
    assert there["time"] == json.loads(members(file)["manifest.json"])["time"] < here["time"]


def members(file: Path) -> dict[str, bytes]:
    """The members of a capture by name."""
    with tarfile.open(file) as archived:
        found = {}
        for member in archived:
            content = archived.extractfile(member)
            assert content
            found[Path(member.name).name] = content.read()
    return found


def test_capture_holds_what_the_agent_remembers(gpu_node: Node, tmp_path: Path) -> None:
    """A capture holds the agent's stored state and journal, so that a replay also finds a GPU missing."""
    there = {gpu["uuid"]: gpu["pci"] for gpu in gpu_node.run("check", "--json").json["gpus"]}
    journal = Journal(gpu_node.journal, 86400.0, 1000)
    memory = Memory(baselines={"nvidia": Baseline(gpus={**there, GONE: PciAddress("0000:ff:00.0")})})
    entry = Entry(time=datetime.now(UTC), kind="raised", code="xid.79", component=NODE, message="gone")
    journal.write([entry], {"checks": msgspec.json.encode(memory)})
    journal.close()
    file = tmp_path / "c.tar.gz"
    gpu_node.run("capture", "-o", file)
    assert json.loads(members(file)["journal.jsonl"])["code"] == "xid.79"
    said = gpu_node.run("check", "--replay", file)
    assert said.code == 2
    assert "gpu.missing" in said.out
    assert f"replay of {file}" in said.out


def test_several_rounds_are_judged_with_their_history(gpu_node: Node, tmp_path: Path) -> None:
    """Rates need two readings: checked in a capture with two rounds, not in a single run."""
    file = tmp_path / "c.tar.gz"
    gpu_node.run("capture", "-o", file, "--rounds", "2", "--interval", "0.1s")
    once = gpu_node.run("check", "--json").json["coverage"]["checked"]
    twice = gpu_node.run("check", "--json", "--replay", file).json["coverage"]["checked"]
    assert "pcie.replay_rate" not in once
    assert "pcie.replay_rate" in twice


def test_kernel_log_is_judged_by_the_time_of_the_capture(gpu_node: Node, tmp_path: Path) -> None:
    """A replay counts an XID of the minutes before the capture; an older one needs --since."""
    gpu_node.configure("kmsg: {lookback: 10s}")
    gpu_node.log("NVRM: Xid (PCI:0000:61:00): 79, GPU has fallen off the bus.", seconds_ago=60)
    file = tmp_path / "c.tar.gz"
    gpu_node.run("capture", "-o", file)
    assert gpu_node.run("check", "--replay", file).code == 0
    said = gpu_node.run("check", "--replay", file, "--since", "1h")
    assert said.code == 2
    assert "xid.79" in said.out


def test_hung_driver_is_captured(gpu_node: Node, tmp_path: Path) -> None:
    """A capture of a hung driver ends with a note, and is unhealthy in the replay."""
    assert gpu_node.simulator
    gpu_node.simulator.inject("hang", gpu=4)
    gpu_node.configure("nvml: {warn_after: 0.3s, critical_after: 0.6s}")
    file = tmp_path / "c.tar.gz"
    try:
        said = gpu_node.run("capture", "-o", file, "--rounds", "3", "--interval", "0s")
    finally:
        gpu_node.simulator.release()
    assert said.code == 0
    assert "note: the driver stopped answering in round 1 of 3" in said.out
    assert gpu_node.run("check", "--replay", file).code == 2


def test_existing_file_is_kept(node: Node, tmp_path: Path) -> None:
    """An existing file is overwritten only with --force, and no partial file is left."""
    file = tmp_path / "c.tar.gz"
    file.write_text("precious")
    assert "already exists" in refused(node.run("capture", "-o", file))
    assert file.read_text() == "precious"
    assert node.run("capture", "-o", file, "--force").code == 0
    assert tarfile.is_tarfile(file)
    assert [each.name for each in tmp_path.glob(".c.tar.gz*")] == []


def test_a_device_or_a_folder_is_not_replaced(node: Node, tmp_path: Path) -> None:
    """With --force too, only a regular file is overwritten: root could replace a device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path):
        assert "it is not a regular file" in refused(node.run("capture", "-o", path, "--force"))
    assert pipe.is_fifo()


def test_what_is_no_file_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    """A pipe without a writer, a device without end or a folder is no capture, and is refused at once."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        assert "it is not a regular file" in refused(run("check", "--replay", path))


def changed(file: Path, change: Callable[[dict[str, Any]], object], **settings: object) -> Path:
    """The capture with changed readings of its only round, or other settings."""
    found = {name.removeprefix("gpuhealth-capture/"): content for name, content in members(file).items()}
    readings = json.loads(found["readings.jsonl"])
    change(readings["monitors"]["nvidia"]["nvml"])
    found["readings.jsonl"] = json.dumps(readings).encode()
    if settings:
        found["settings.json"] = json.dumps(settings).encode()
    return archive(file.with_name("changed.tar.gz"), found)


@pytest.fixture
def captured(gpu_node: Node, tmp_path: Path) -> Path:
    """A capture of a healthy node with eight GPUs."""
    gpu_node.run("capture", "-o", tmp_path / "c.tar.gz")
    return tmp_path / "c.tar.gz"


def test_absurd_readings(captured: Path, gpu_node: Node) -> None:
    """A driver version that is a huge number, and more GPUs than a node can have, cost no traceback and no minutes."""
    said = gpu_node.run("check", "--replay", changed(captured, lambda nvml: nvml.update(driver_version="9" * 5000)))
    assert (said.code, said.err) == (0, "")
    said = gpu_node.run("check", "--replay", changed(captured, lambda nvml: nvml.update(gpus=nvml["gpus"] * 250)))
    assert "it has more GPUs than a node can have" in refused(said)


def test_a_capture_states_with_which_settings_it_was_judged(captured: Path, gpu_node: Node) -> None:
    """What the settings in a capture hide is in text and JSON; other settings are used with --config."""

    def lose(nvml: dict[str, Any]) -> None:
        nvml["gpus"][3]["remap_failed"] = True

    own = "judged with the settings of the capture; --config FILE judges with others"
    hidden = {"*": {"ignore": True}, "xid.79": {"severity": "info"}}
    for settings, code, notes in (
        ({"mode": "taint"}, 2, [own]),
        (
            {"findings": hidden},
            0,
            [own, "findings ignored by settings: *", "severity of findings set by settings: xid.79"],
        ),
        ({"monitors": {"nvidia": {"enabled": False}}}, 3, [own, "monitors disabled by settings: nvidia"]),
    ):
        file = changed(captured, lose, **settings)
        said = gpu_node.run("check", "--json", "--replay", file)
        assert (said.code, [note for note in said.json["notes"] if "settings" in note]) == (code, notes)
        text = gpu_node.run("check", "--replay", file).out.splitlines()
        assert [f"note: {note}" for note in notes] == [line for line in text if "settings" in line]
    file = changed(captured, lose, findings=hidden)
    (file.parent / "own.yaml").write_text("mode: taint")
    said = gpu_node.run("check", "--json", "--replay", file, "--config", file.parent / "own.yaml")
    assert (said.code, [note for note in said.json["notes"] if "settings" in note]) == (2, [])


def test_capture_where_it_cannot_be_written(run: Run, tmp_path: Path) -> None:
    """A missing directory is reported at once, before anything is read."""
    assert "there is no folder" in refused(run("capture", "-o", tmp_path / "nowhere" / "c.tar.gz"))


def test_unreadable_kernel_log_is_noted(node: Node, tmp_path: Path) -> None:
    """A kernel log that could not be read is a note in the capture and in the replay."""
    node.kmsg.unlink()
    file = tmp_path / "c.tar.gz"
    assert "note: the kernel log could not be read" in node.run("capture", "-o", file).out
    assert "kernel.jsonl" not in members(file)
    assert "note: the kernel log could not be read" in node.run("check", "--replay", file).out


def test_capture_with_the_least_is_judged(run: Run, tmp_path: Path) -> None:
    """Readings alone can be checked; a note names each missing part."""
    said = run("check", "--replay", archive(tmp_path / "c.tar.gz", good()))
    assert (said.code, said.err) == (3, "")
    for sentence in ("no kernel log", "no settings", "no memory of earlier rounds"):
        assert f"note: the capture has {sentence}" in said.out


def test_settings_of_another_version(run: Run, tmp_path: Path) -> None:
    """Settings in a capture that this version does not know are left out, with a note."""
    file = archive(tmp_path / "c.tar.gz", good(settings_json=b'{"from_the_future": 1}'))
    assert "note: the settings in the capture are of another version" in run("check", "--replay", file).out


def link() -> tarfile.TarInfo:
    """A link to a file outside the archive instead of the readings."""
    member = tarfile.TarInfo("gpuhealth-capture/readings.jsonl")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def crowd() -> dict[str, bytes | tarfile.TarInfo]:
    """An archive with very many members."""
    return {f"{number}.json": b"{}" for number in range(1000)}


DEEP = b'{"node": ' + b"[" * 100_000


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (dict, "it has no manifest"),
        (lambda: {"manifest.json": good()["manifest.json"]}, "it has no readings"),
        (lambda: good(readings_jsonl=b""), "it has no readings"),
        (lambda: good(manifest_json=b'{"format": 99}'), "its format is 99"),
        (lambda: good(manifest_json=b"[1]"), "manifest.json cannot be read"),
        (lambda: good(readings_jsonl=b'{"node": 1}'), "line 1 of readings.jsonl cannot be read"),
        (lambda: good(readings_jsonl=b"\xff\xfe"), "line 1 of readings.jsonl cannot be read"),
        (lambda: good(readings_jsonl=DEEP), "line 1 of readings.jsonl cannot be read"),
        (
            lambda: good(readings_jsonl=b'{"node":"n","time":"2026-01-01T00:00:00","boot_id":"b","monitors":{}}'),
            "times without a time zone, or of another age",
        ),
        (
            lambda: good(kernel_jsonl=b'{"text":"x","time":"2026-01-01T00:00:00"}'),
            "times without a time zone, or of another age",
        ),
        (
            lambda: good(readings_jsonl=b'{"node":"n","time":"0001-01-01T00:00:00Z","boot_id":"b","monitors":{}}'),
            "of another age",
        ),
        (lambda: good(manifest_json=json.dumps(MANIFEST | {"format": 1}).encode()), "its format is 1, and this"),
        (lambda: good(readings_jsonl=b'{"node":"n","time":"2026-01-01T00:00:00Z","boot_id":"b"}'), "cannot be read"),
        (lambda: {"manifest.json": good()["manifest.json"], "readings.jsonl": link()}, "it has no readings"),
        (lambda: {"../../manifest.json": b"{}"}, "it has no manifest"),
        (crowd, "more than 64 members"),
    ],
)
def test_capture_that_is_none(
    run: Run, tmp_path: Path, make: Callable[[], dict[str, bytes | tarfile.TarInfo]], sentence: str
) -> None:
    """An archive that is no capture is refused with one sentence, and nothing of it is written to disk."""
    folder = tmp_path / "captures"
    folder.mkdir()
    file = archive(folder / "c.tar.gz", make())
    assert sentence in refused(run("check", "--replay", file))
    assert [each.name for each in folder.iterdir()] == ["c.tar.gz"]


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive at all", gzip.compress(b"no tar"), gzip.compress(b"x" * 5000)[:-9]],
    ids=["empty", "text", "no tar", "cut"],  # of the bytes the time is a part
)
def test_file_that_is_no_archive(run: Run, tmp_path: Path, content: bytes) -> None:
    """A file that is no archive is refused with one sentence."""
    file = tmp_path / "c.tar.gz"
    file.write_bytes(content)
    assert str(file) in refused(run("check", "--replay", file))


def test_truncated_capture(gpu_node: Node, tmp_path: Path) -> None:
    """A truncated capture is refused, and not checked by its remaining part."""
    file = tmp_path / "c.tar.gz"
    gpu_node.run("capture", "-o", file)
    file.write_bytes(file.read_bytes()[:-200])
    refused(gpu_node.run("check", "--replay", file))


def test_archive_that_unpacks_without_end(run: Run, tmp_path: Path) -> None:
    """A small file that unpacks to a very large one is refused when it exceeds the limit."""
    file = tmp_path / "c.tar.gz"
    member = tarfile.TarInfo("gpuhealth-capture/other.bin")
    member.size = 1 << 40
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(member.tobuf())
        for _ in range(300):
            packed.write(bytes(1 << 20))
    assert "MiB" in refused(run("check", "--replay", file))


def test_newest_records_are_kept() -> None:
    """The newest records of a long kernel log are kept, in their order."""
    records = [KernelRecord("x" * 10, sequence=number) for number in range(10)]
    assert [record.sequence for record in capture.newest(records, 35)] == [7, 8, 9]
    assert len(capture.newest(records, 1000)) == 10
    assert capture.newest([], 10) == ()


def test_an_error_quotes_no_control_characters(tmp_path: Path) -> None:
    """An error that quotes the capture is one printable sentence of bounded length."""
    odd = READINGS | {"monitors": {"nvidia": {"type": "missing", "reason": "\x1b[31m" * 5000}}}
    file = archive(tmp_path / "capture.tar.gz", good(readings_jsonl=json.dumps(odd).encode()))
    with pytest.raises(capture.CaptureError) as unusable:
        capture.load(file)
    assert str(unusable.value).isprintable()
    assert len(str(unusable.value)) < 1000
    file = archive(
        tmp_path / "other.tar.gz", good(manifest_json=json.dumps(MANIFEST | {"format": "9" * 5000}).encode())
    )
    with pytest.raises(capture.CaptureError, match="its format is") as unusable:
        capture.load(file)
    assert len(str(unusable.value)) < 1000
