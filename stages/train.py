"""Train one network on a folder of images, or take its weights as they are (0 epochs), and test it."""

import re
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, SharedStage, option
from _experiment import image_options, running

from cxlib import networks, runtime
from cxlib.datasets.images import preprocessing, read
from cxlib.training import fine_tune


@click.command(cls=SharedStage)
@option("--architecture")
@option("--weights")
@option("--weights-path")
@image_options
@option("--epochs", COUNT)
@option("--batch-size", POSITIVE)
@option("--learning-rate", float)
@option("--momentum", float)
@option("--weight-decay", float)
@option("--schedule", click.Choice(list(fine_tune.SCHEDULES)))
@option("--clip", click.FloatRange(min=0))
@option("--augmentation", click.Choice(list(fine_tune.AUGMENTATIONS)))
@option("--batch-norm", click.Choice(list(fine_tune.BATCH_NORM)))
@option("--precision", click.Choice(runtime.PRECISIONS))
@option("--seed", COUNT)
@option("--out")
@option("--report")
@option("--curves")
def main(architecture, weights, weights_path, data, image_size, crop, seed, out, report, curves, **recipe):
    """Write the trained network to --out, its test probabilities and training curves to --report.

    --weights is `random`, or NAME-HASH, the first eight hex digits of the file's SHA-256: the name says what is in it.
    --curves is a folder for dvclive, written while training. An interrupted training goes on where it stood.
    """
    if weights != "random" and not re.fullmatch(r".+-[0-9a-f]{8}", weights):
        raise ValueError(
            f"--weights {weights}: name weights by what is in them, NAME-<first 8 hex digits of the file's SHA-256>,"
            f" and put a file of your own into {weights_path} under that name with .pth behind it"
        )
    recipe = fine_tune.Recipe(**recipe)
    test, train = read(data, "test"), read(data, "train") if recipe.epochs else None
    transform, labels = preprocessing(image_size, crop), np.array(test.labels)
    inputs = [*Path(data).glob("*.txt"), *test.paths, *(train.paths if train else ())]
    with running(inputs) as run:
        n_classes = len(test.classes) if train or weights == "random" else None
        with runtime.seeded(seed):
            model = networks.build(architecture, None if weights == "random" else weights, n_classes, weights_path)
        model.to(run.device, memory_format=torch.channels_last)
        how = (test, transform, run.machine.batch_size, run.ranks, run.folder, run.machine.workers)
        probabilities = partial(fine_tune.test, model, *how)
        log = live(curves, run.ranks)

        def accuracy(n_epochs):
            p = probabilities(n_epochs)
            return None if p is None else float((p.argmax(1) == labels).mean())

        epochs = []
        if train:
            how = (recipe, image_size, run.machine.workers, seed, accuracy, run.ranks, run.folder)
            for epoch in fine_tune.fine_tune(model, train, *how):
                epochs.append(epoch)
                log(len(epochs), training_loss=epoch.loss, test_accuracy=epoch.measured)
        p = probabilities(len(epochs))
        if p is None:
            return
        if p.shape[1] != len(test.classes):
            raise ValueError(
                f"{architecture} with weights {weights} tells {p.shape[1]} classes apart, {data} has"
                f" {len(test.classes)}: train it, --epochs 1 or more"
            )
        networks.save(model, out)
        losses, accuracies = (np.array([epoch[i] for epoch in epochs]) for i in range(2))
        results = {"probabilities": p, "labels": labels, "losses": losses, "accuracies": accuracies}
        runtime.write_arrays(report, **results, computed_by=np.array(runtime.computed_by(run.device)))
        reached = float((p.argmax(1) == labels).mean())
        if not epochs:
            log(0, test_accuracy=reached)
        click.echo(f"{architecture}: test accuracy {reached:.1%} of {len(test)} images")


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
        for name, value in values.items():
            curves.log_metric(name, value)

    return log


if __name__ == "__main__":
    main()
