"""What the ways to a network share: the network and its data at work, its test, and what is written of it."""

import re
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import torch
from _experiment import running

from cxlib import networks, runtime
from cxlib.datasets.images import preprocessing, read
from cxlib.training import fine_tune, frozen


class Work:
    """One process at work on a network.

    Attributes:
        run: the `Run`.
        model: the network, on its device.
        test, train: its images; without a `train` side it is tested only.
        labels: (N,) of the test images.
        transform: from a picture to what the network sees.
    """

    def __init__(self, run, options, new_head=False):
        weights, folder = options["weights"], options["weights_path"]
        if weights != "random" and not re.fullmatch(r"[^/]+-[0-9a-f]{8}", weights):
            raise ValueError(
                f"--weights {weights}: name weights by what is in them, NAME-<first 8 hex digits of the file's SHA-256>"
                f", and put a file of your own into {folder} under that name with .pth behind it"
            )
        self.run, self.options, self.test = run, options, read(options["data"], "test")
        self.labels = np.array(self.test.labels)
        n_classes = len(self.test.classes) if new_head else None
        with runtime.seeded(options.get("seed", 0)):
            model = networks.build(options["architecture"], None if weights == "random" else weights, n_classes, folder)
        self.model = model.to(run.device, memory_format=torch.channels_last)
        self.model.preparation = {name: options[name] for name in ("image_size", "crop")}
        self.transform = preprocessing(**self.model.preparation)
        self.log = live(options["curves"], run.ranks)

    def probabilities(self, n_epochs=0):
        """Test probabilities (N, K) on rank 0, None on the others."""
        run = self.run
        how = (run.machine.batch_size, run.ranks, run.folder, run.machine.workers, n_epochs)
        return fine_tune.test(self.model, self.test, self.transform, *how)

    def features(self, forward, samples, name):
        """What `forward` makes of samples, on every rank."""
        run = self.run
        how = (run.device, run.machine.batch_size, run.ranks, run.folder / name, run.machine.workers)
        return frozen.features(forward, samples, self.transform, *how)

    def accuracy(self, p):
        """The share of images that probabilities (N, K) get right; None on ranks without, and for unknown labels."""
        return None if p is None or (self.labels < 0).any() else float((p.argmax(1) == self.labels).mean())

    def write(self, classes, losses=(), accuracies=()):
        """Test the network, and write it with its report, where its output classes have these names."""
        p = self.probabilities(len(losses))
        if p is None:
            return
        if p.shape[1] != len(classes):
            raise ValueError(
                f"{self.options['architecture']} with weights {self.options['weights']} tells {p.shape[1]} classes"
                f" apart, {self.options['data']} has {len(classes)}: train it, or say that the labels are none of its"
                " classes (--no-labels)"
            )
        networks.save(self.model, self.options["out"])
        by, reached = runtime.computed_by(self.run.device), self.accuracy(p)
        results = {"losses": losses, "accuracies": accuracies, "classes": list(classes), "computed_by": by}
        runtime.write_arrays(self.options["report"], probabilities=p, labels=self.labels, **results)
        if not losses:
            self.log(0, test_accuracy=np.nan if reached is None else reached)
        told = "knows other classes" if reached is None else f"test accuracy {reached:.1%}"
        click.echo(f"{self.options['architecture']}: {told}, {len(p)} images")


@contextmanager
def working(options, *sides, new_head=False):
    """A `Work` on the sides `train` and `test` of its data."""
    samples = [read(options["data"], side) for side in sides]
    if (new_head or "train" in sides) and len(samples[0].classes) < 2:
        raise ValueError(f"{options['data']} has one class: a network needs two or more to tell apart")
    with running([], *samples) as run:
        yield Work(run, options, new_head)


def live(folder, ranks):
    """A function that logs an epoch's numbers for `dvc plots`; on rank 0, where dvclive is installed."""
    curves = None

    def log(epoch, **values):
        nonlocal curves
        if ranks.rank:
            return
        if curves is None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            try:
                from dvclive import Live
            except ImportError:
                return
            curves = Live(folder, save_dvc_exp=False, dvcyaml=None)
        # Neither next_step() nor end(): both would add a summary to the folder, which is no curve.
        curves.step = epoch
        try:
            for name, value in values.items():
                curves.log_metric(name, value)
        except OSError as error:  # on a full disk it names no file
            raise OSError(error.errno, error.strerror, str(folder)) from error

    return log
