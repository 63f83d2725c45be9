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
    """Three devices have two figures each and the median of them; nothing is wrong."""
    outcomes = done(p2p.run, gpus="ABC")
    for gpu, outcome in outcomes.items():
        assert (outcome.failure, outcome.miscompares) == ("", ())
        assert set(outcome.figures) == {figures.P2P, *(figures.pair_figure(peer) for peer in "ABC" if peer != gpu)}
        assert all(figure > 0 for figure in outcome.figures.values())


def test_wrong_data_names_both_ends() -> None:
    """A bit flipped at the receiver is found; sender and receiver fail, the third does not."""
    # Copies go A-B, A-C, B-A, B-C …: the fourth is from B to C.
    outcomes = done(p2p.run, Fault(kind="memory_bits", gpu="C", after=1, times=1), gpus="ABC")
    (miss,) = outcomes["B"].miscompares
    assert miss.what == "copies from B to C"
    assert miss.kind == "transient"
    assert outcomes["C"].miscompares == (miss,)
    assert outcomes["A"].failure == ""


def test_data_of_another_gpu_would_show() -> None:
    """Each GPU sends words of its own: what a third one sent is as wrong as noise."""
    processor = torch.device("cpu")
    one, other = words.distinct_words(1024, 7, processor), words.distinct_words(1024, 8, processor)
    miss = words.compare_words("copies", other, one)
    assert miss is not None
    assert miss.wrong == 1024


def test_a_slow_sender_is_slow_to_all() -> None:
    """Its median is low, those of its peers are not: they have a good pair left."""
    outcomes = done(
        p2p.run, Fault(kind="slow", gpu="B", factor=30), gpus="ABC", seconds=2.0
    )  # samples enough for a median
    speeds = {gpu: outcome.figures[figures.P2P] for gpu, outcome in outcomes.items()}
    assert speeds["B"] < min(speeds["A"], speeds["C"]) / 2


def test_one_device_has_no_peer() -> None:
    """It is skipped, with the reason."""
    assert done(p2p.run)["A"].skipped == "a single GPU has no peer to copy to"


def test_it_stops_when_told() -> None:
    """Pairs that were measured until then are kept."""
    outcomes = done(p2p.run, gpus="ABC", seconds=3600, on_progress=Stopper(after=1))
    assert figures.pair_figure("B") in outcomes["A"].figures
    assert outcomes["C"].figures == {}


def _stuck(connection: multiprocessing.connection.Connection) -> None:
    def on_progress(progress: Progress) -> None:
        connection.send(progress.activity)

    done(p2p.run, Fault(kind="stuck_transfer", gpu="B", after=1), gpus="ABC", on_progress=on_progress)
    connection.send("came back")


def test_a_stuck_copy_has_been_named() -> None:
    """The last that is heard of a process whose copy hangs is between which GPUs it is."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_stuck, args=(there,))
    process.start()
    there.close()
    heard = [here.recv()]
    # The second copy from B is that to C: before it come A-B, A-C and B-A, each told of.
    while heard[-1] != "copies from B to C":
        heard.append(here.recv())
    assert not here.poll(1.0)
    assert process.is_alive()
    process.kill()
    process.join()
