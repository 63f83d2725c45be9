"""The test of copies between GPUs, between processors' buffers."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection

import torch
from testing.burnin_jobs import Stopper, done

from gpuhealth.burnin import figures, p2p
from gpuhealth.burnin import word_patterns as words
from gpuhealth.burnin.protocol import Fault, Progress


def test_every_ordered_pair_is_measured() -> None:
    """Each of three devices has figures for both peers and their median, without a miscompare."""
    outcomes = done(p2p.run, gpus="ABC")
    for gpu, outcome in outcomes.items():
        assert (outcome.failure, outcome.miscompares) == ("", ())
        assert set(outcome.figures) == {figures.P2P, *(figures.pair_figure(peer) for peer in "ABC" if peer != gpu)}
        assert all(figure > 0 for figure in outcome.figures.values())


def test_wrong_data_names_both_ends() -> None:
    """A bit flipped at the receiver fails sender and receiver, and not the third device."""
    # Copies go A-B, A-C, B-A, B-C …: the fourth is from B to C.
    outcomes = done(p2p.run, Fault(kind="memory_bits", gpu="C", after=1, times=1), gpus="ABC")
    (miss,) = outcomes["B"].miscompares
    assert miss.what == "copies from B to C"
    assert miss.kind == "transient"
    assert outcomes["C"].miscompares == (miss,)
    assert outcomes["A"].failure == ""


def test_data_of_another_gpu_would_show() -> None:
    """Each GPU sends different words, so that data of a third GPU is wrong in every word."""
    processor = torch.device("cpu")
    one, other = words.distinct_words(1024, 7, processor), words.distinct_words(1024, 8, processor)
    miss = words.compare_words("copies", other, one)
    assert miss is not None
    assert miss.wrong == 1024


def test_a_slow_sender_is_slow_to_all() -> None:
    """A slow sender has a low median; its peers do not, because each has a good pair left."""
    outcomes = done(
        p2p.run, Fault(kind="slow", gpu="B", factor=30), gpus="ABC", seconds=2.0
    )  # samples enough for a median
    speeds = {gpu: outcome.figures[figures.P2P] for gpu, outcome in outcomes.items()}
    assert speeds["B"] < min(speeds["A"], speeds["C"]) / 2


def test_one_device_has_no_peer() -> None:
    """A single device is skipped, with the reason."""
    assert done(p2p.run)["A"].skipped == "a single GPU has no peer to copy to"


def test_a_stop_ends_it() -> None:
    """After a stop, the pairs measured so far are kept."""
    outcomes = done(p2p.run, gpus="ABC", seconds=3600, on_progress=Stopper(after=1))
    assert figures.pair_figure("B") in outcomes["A"].figures
    assert outcomes["C"].figures == {}


def _stuck(connection: multiprocessing.connection.Connection) -> None:
    def on_progress(progress: Progress) -> None:
        connection.send(progress.activity)

    done(p2p.run, Fault(kind="stuck_transfer", gpu="B", after=1), gpus="ABC", on_progress=on_progress)
    connection.send("came back")


def test_a_stuck_copy_has_been_named() -> None:
    """The last progress message before a copy hangs names its two GPUs."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_stuck, args=(there,))
    process.start()
    there.close()
    activities = [here.recv()]
    # The second copy from B is that to C: before it come A-B, A-C and B-A, each reported before it starts.
    while activities[-1] != "copies from B to C":
        activities.append(here.recv())
    assert not here.poll(1.0)
    assert process.is_alive()
    process.kill()
    process.join()
