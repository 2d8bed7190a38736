"""Trainings in processes of their own, for test_training.py: whole, killed over and over, and shared by three ranks.

`python tests/training_runs.py BIRDS OUT` writes the weights of each to OUT. It forks, which torch allows one thread.
"""

import io
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from cxlib import runs, runtime
from cxlib.datasets import images
from cxlib.training.fine_tune import Augmented, Recipe, fine_tune

SIZE = 32
# 16 images: 7, 7 and 2 a batch, so that of three ranks one has no image of the last.
RECIPE = Recipe(4, 7, "sgd", 0.02, 0.9, 5e-4, "one_cycle", 5.0, "light", "learned", "float32")


def small():
    """All that a training draws from or keeps: batch norm, and dropout on maps and on vectors."""
    with runtime.seeded(0):
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(True), nn.Dropout(0.2), nn.Conv2d(8, 8, 3, 2),
            nn.BatchNorm2d(8), nn.ReLU(True), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 49, 16), nn.BatchNorm1d(16),
            nn.ReLU(True), nn.Linear(16, 8),
        )  # fmt: skip
    return network.to(memory_format=torch.channels_last)


def train(samples, out, ranks=runs.Ranks(), folder=None, n_epochs=None):  # noqa: B008
    """Train and write the weights and the epochs; after `n_epochs` epochs drop the rest, as a kill does."""
    network, epochs = small(), []
    # The measure is a number that only these weights give.
    measured = lambda n: n + sum(p.abs().sum().item() for p in network.parameters())  # noqa: E731
    source = Augmented(samples, RECIPE.augmentation, SIZE, 0)
    for epoch in fine_tune(network, source, RECIPE, 0, 0, measured, ranks, folder, every=0):
        epochs.append(tuple(epoch))
        if len(epochs) == n_epochs:
            return
    if ranks.rank == 0:
        # Through a buffer: torch.save writes the file's name into the archive.
        buffer = io.BytesIO()
        torch.save({"network": network.state_dict(), "epochs": epochs}, buffer)
        out.write_bytes(buffer.getvalue())


def forked(work, *args, **kwargs):
    """The process id of a fork that does this work."""
    pid = os.fork()
    if pid:
        return pid
    # tqdm's own lock is shared among forks, and one that is killed while it holds it would stop all the others.
    tqdm.set_lock(threading.RLock())
    try:
        work(*args, **kwargs)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def killed_over_and_over(samples, out):
    """Start the training again until it ends, killed each time a few checkpoints later; returns where it was killed."""
    draw, places = random.Random(0), []
    folder = out.with_suffix("")
    checkpoint = folder / "checkpoint.pt"

    def life():
        with runs.workplace(folder, runs.Ranks()):
            train(samples, out, folder=folder)

    while True:
        pid, left, last = forked(life), draw.randint(1, 2), None
        while left:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                assert status == 0
                return places
            now = None
            with suppress(FileNotFoundError):  # the end of the training removes it
                now = checkpoint.stat().st_mtime_ns
            left, last = left - (now not in (None, last)), now
        time.sleep(draw.random() / 100)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        content = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {"epochs": [], "step": 0}
        places.append((len(content["epochs"]), content["step"]))


def three_ranks(samples, out, folder):
    """Share the training among three processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }

    def one(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with runs.joined() as ranks:
            train(samples, out, ranks, folder)

    pids = [forked(one, rank) for rank in range(3)]
    assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)


if __name__ == "__main__":
    torch.set_num_threads(1)
    birds, written = Path(sys.argv[1]), Path(sys.argv[2])
    everything = images.read(birds, "train")
    train(everything, written / "whole.pt")
    print(json.dumps(killed_over_and_over(everything, written / "killed.pt")))
    (written / "begun").mkdir()
    train(everything, None, folder=written / "begun", n_epochs=1)
    three_ranks(everything, written / "shared.pt", None)
    three_ranks(everything, written / "taken_over.pt", written / "begun")
