"""Damaged captures, through `gpuhealth check --replay`."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from testing.readings import START, gpu, node, remembering

from fuzzing import log_lines, mutate
from fuzzing.console import plain_output
from fuzzing.target import encoded, require, require_printable, require_sentence
from gpuhealth.agent import capture as captures
from gpuhealth.cli import check as command
from gpuhealth.cli import check_report
from gpuhealth.cli.output import CommandError
from gpuhealth.cli.single_run import CodeFilter, RunResult
from gpuhealth.model.kernel_event import KernelLogStatus, KernelRecord
from gpuhealth.model.missing import Missing
from gpuhealth.model.verdict import State
from gpuhealth.monitors.nvidia.monitor import MONITOR as NVIDIA
from gpuhealth.monitors.settings import Settings

_GPUS = 3
_FOLDER = "gpuhealth-capture"


def _capture() -> dict[str, bytes]:
    """The members of a capture of a healthy node."""
    gpus = [gpu(index) for index in range(_GPUS)]
    rounds = tuple(node(*gpus, at=10 * number, kernel_log=KernelLogStatus("kmsg")).readings() for number in range(2))
    manifest = captures.Manifest(captures.FORMAT, "node-1", START, "boot-1", {"gpuhealth": "1"})
    records = (
        KernelRecord("usb 1-3: new device", START, 1),
        KernelRecord("eth0: renamed", START + timedelta(seconds=1), 2),
    )
    memory = remembering(gpus={each.uuid: each.pci for each in gpus}, counted=_GPUS)
    whole = captures.Capture(
        manifest=manifest,
        rounds=rounds,
        kernel_log=records,
        settings=Settings(node_name="node-1").model_dump(mode="json"),
        memory=msgspec.json.encode(memory),
        journal=(msgspec.Raw(b'{"time":"2026-01-01T00:00:00Z"}'),),
    )
    buffer = io.BytesIO()
    captures.write(whole, buffer)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer, mode="r:gz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


_MEMBERS = _capture()
_READINGS, _MEMORY = f"{_FOLDER}/readings.jsonl", f"{_FOLDER}/memory.json"


class Target:
    """A case is the file of a capture."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "capture.tar.gz"

    def make(self, chance: random.Random) -> bytes:
        """A capture with changed values, changed bytes in a member, in the archive or in the compressed file."""
        members = dict(_MEMBERS)
        roll = chance.random()
        for _ in range(chance.choice((1, 1, 2))):
            name = chance.choice((_READINGS, _READINGS, *members))
            if name in members and roll < 0.85:
                members[name] = self._changed(members[name], chance, by_value=roll < 0.65)
            elif roll < 0.9:
                members.pop(name, None)
        if chance.random() < 0.2:
            lines = (log_lines.message(chance).decode("utf-8", "replace") for _ in range(5))
            records = [KernelRecord(line, START, number) for number, line in enumerate(lines)]
            members[f"{_FOLDER}/kernel.jsonl"] = msgspec.json.Encoder().encode_lines(records)
        whole = _archive(members, chance)
        if 0.9 <= roll < 0.95:
            whole = mutate.mutate_bytes(whole, chance)
        data = gzip.compress(whole, 1, mtime=0)
        return mutate.mutate_bytes(data, chance) if roll >= 0.95 else data

    def _changed(self, text: bytes, chance: random.Random, *, by_value: bool) -> bytes:
        if not by_value:
            return mutate.mutate_bytes(text, chance)
        lines = []
        for line in text.splitlines() if text.count(b"\n") < 5 else [text]:
            value: Any = msgspec.json.decode(line)
            mutate.mutate_value(value, chance, 2)
            lines.append(msgspec.json.encode(value))
        return b"\n".join(lines)

    def check(self, case: bytes) -> int:
        """The capture is refused in one sentence, or judged; and the node is healthy only with all of its GPUs."""
        self._file.write_bytes(case)
        try:
            result, notes = command._check_capture(self._file, None, None, CodeFilter([]), None)
        except CommandError as error:
            require_sentence(error, "the error", 5000)
            return 1
        self._check_result(result, notes)
        return 1

    def _check_result(self, result: RunResult, notes: list[str]) -> None:
        verdict = result.verdict
        encoded(verdict, 1 << 23)
        output = plain_output(lambda: check_report.show(result, notes, verbose=True))
        require_printable(output, "the report", 1 << 22, allowed="\n")
        if verdict.verdict is not State.HEALTHY or result.settings.expected_gpus is not None:
            return
        nvidia = result.readings.of(NVIDIA)
        require(not isinstance(nvidia, Missing), "healthy without readings")
        assert not isinstance(nvidia, Missing)
        nvml = nvidia.nvml
        require(nvml.is_complete, "healthy by a round that is not complete")
        require(len(nvml.gpus) == nvml.count, f"healthy with {len(nvml.gpus)} of {nvml.count} GPUs")
        require(all(each.error is None for each in nvml.gpus), "healthy with a GPU that has an error")
        require(len({each.uuid for each in verdict.gpus}) == len(verdict.gpus), "a GPU counts twice")

    def close(self) -> None:
        """Removes the folder of the capture."""
        self._folder.cleanup()


def _archive(members: dict[str, bytes], chance: random.Random) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if chance.random() < 0.02:
                member.name = chance.choice(
                    ("/etc/passwd", f"{_FOLDER}/../x", "x" * 300, f"{_FOLDER}/", mutate.encodable_text(chance))
                )
            if chance.random() < 0.02:
                member.type = chance.choice(
                    (
                        tarfile.SYMTYPE,
                        tarfile.LNKTYPE,
                        tarfile.CHRTYPE,
                        tarfile.DIRTYPE,
                        tarfile.FIFOTYPE,
                        b"S",
                        b"\xff",
                    )
                )
                member.linkname = "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
