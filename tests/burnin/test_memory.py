"""The test of device memory, on the processor's."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
import torch
from testing.burnin_jobs import Stopper, done

from gpuhealth.burnin import memory
from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.protocol import DeviceResult, Fault


def test_sound_memory_passes() -> None:
    """Sound memory passes, and the result has the share of the memory that was tested."""
    outcome = done(memory.run)["A"]
    assert (outcome.failure, outcome.miscompares) == ("", ())
    assert outcome.figures["tested_percent"] >= 90
    assert outcome.figures["rounds"] == 1
    assert outcome.figures["wrong_words"] == 0


def test_a_stuck_cell_is_found_and_named() -> None:
    """A stuck bit is repeatable, and its address is that of the injected fault within its chunk."""
    outcome = done(memory.run, Fault(kind="memory_bits"))["A"]
    first = outcome.miscompares[0]
    assert first.kind == "repeatable"
    assert first.repeats == "3 of 3 when read again, 3 of 3 when written again"
    xor = int(first.xor, 16)
    assert xor.bit_count() == 1
    assert int(first.got, 16) ^ int(first.expected, 16) == xor
    # With the address pattern each expected word is its own byte offset; little-endian byte order gives the rest.
    assert first.what == "own address"
    assert first.index == int(first.expected, 16) + (xor.bit_length() - 1) // 8
    assert "wrong 64-bit words" in outcome.failure
    assert outcome.figures["wrong_words"] > len(outcome.miscompares)


@pytest.mark.parametrize("after", [0, 100, 600])
def test_a_bit_that_flips_once_is_transient(after: int) -> None:
    """After whichever write it occurs, one flipped bit is one wrong word, and is gone after writing again."""
    outcome = done(memory.run, Fault(kind="memory_bits", times=1, after=after))["A"]
    (miss,) = outcome.miscompares
    assert (miss.kind, miss.wrong) == ("transient", 1)
    assert miss.repeats == "3 of 3 when read again, 0 of 3 when written again"
    assert outcome.figures["wrong_words"] == 1


def test_many_bits_and_words_are_counted() -> None:
    """All wrong words are counted, and the first one is listed with all its bits."""
    outcome = done(memory.run, Fault(kind="memory_bits", bits=3, elements=5, times=1))["A"]
    (miss,) = outcome.miscompares
    assert miss.wrong == 5
    assert int(miss.xor, 16).bit_count() == 3


def test_only_the_faulty_gpu_is_named() -> None:
    """Of two devices, only the one with a fault fails."""
    outcomes = done(memory.run, Fault(kind="memory_bits", gpu="B"), gpus="AB")
    assert outcomes["A"].failure == ""
    assert outcomes["B"].failure != ""


def test_a_stop_ends_it() -> None:
    """A stop ends the test at once, and what it has found is kept."""
    stopper = Stopper(after=80)
    outcome = done(memory.run, Fault(kind="memory_bits"), seconds=3600, on_progress=stopper)["A"]
    assert len(stopper.messages) == 81
    assert outcome.figures["rounds"] == 0
    assert outcome.miscompares != ()


_CAPPED = """
import resource, sys
from gpuhealth.burnin import memory
from testing.burnin_jobs import done
import msgspec, pathlib
done(memory.run)  # whatever torch loads at first use
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
outcome = done(memory.run, memory_bytes=512 << 20)["A"]
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
sys.stdout.buffer.write(msgspec.json.encode(outcome))
"""


def test_too_little_memory_is_a_failure() -> None:
    """Where less can be allocated than is reported free, that is tested, and the test fails because of the share."""
    # With a fixed threshold what is freed goes back at once, as on a device; else it may stay in a heap, in pieces.
    malloc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": "tools", **malloc}
    command = [sys.executable, "-c", _CAPPED]
    ran = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=150)
    assert ran.returncode == 0, ran.stderr.decode()
    outcome = msgspec.json.decode(ran.stdout, type=DeviceResult)
    assert 5 < outcome.figures["tested_percent"] < 30
    assert "90 % must be tested" in outcome.failure
    assert outcome.figures["wrong_words"] == 0


def test_words_differ_between_seeds_and_places() -> None:
    """The words of one seed are distinct, and differ from those of another seed at every position."""
    one, two = (words.distinct_words(4096, seed, torch.device("cpu")) for seed in (1, 2))
    assert len(set(one.tolist())) == 4096
    assert not bool(one.eq(two).any())


def test_the_first_wrong_word_is_the_lowest() -> None:
    """The index is the offset of the first wrong byte, whatever else is wrong after it."""
    held = torch.zeros(1000, dtype=torch.int64)
    assert words.compare_words("zeros", held, 0) is None
    held[200], held[700], held[900] = 1 << 63 - 8, 5, -1
    miss = words.compare_words("zeros", held, 0, offset_bytes=4096)
    assert miss is not None
    assert (miss.index, miss.wrong) == (4096 + 8 * 200 + 6, 3)
    assert (miss.xor, miss.expected) == ("0x0080000000000000", "0x0000000000000000")
