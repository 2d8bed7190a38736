"""A network for the experiments, tested on a folder of images: as it came, with a probe, or fine-tuned."""

from functools import partial

import click
import numpy as np
from _command import AMOUNT, COUNT, POSITIVE, SHARE, SIZE, SharedStage, flag, option
from _experiment import image_options
from _training import working
from torch import nn

from cxlib import networks, runtime
from cxlib.datasets.images import read
from cxlib.networks.build import heads
from cxlib.training import fine_tune, frozen
from cxlib.training import probe as logistic


@click.group()
def main():
    """Write a network to --out, and its test probabilities, classes and training curves to --report.

    --weights is `random`, or NAME-HASH, the first eight hex digits of the file's SHA-256: the name says what is in it.
    --curves is a folder for dvclive, written while training. Interrupted work goes on where it stood.
    """


def command(name, *options):
    """A command of these options, and of those that all have."""

    def decorated(function):
        ours = (option("--architecture"), option("--weights"), option("--weights-path"), image_options)
        for add in reversed((*ours, *options, option("--out"), option("--report"), option("--curves"))):
            function = add(function)
        return main.command(name, cls=SharedStage)(function)

    return decorated


@command("as_it_came", flag("--labels/--no-labels"))
def as_it_came(labels, **options):
    """No training. With --no-labels the images show other classes than the network knows: there is no accuracy."""
    with working(options, "test", new_head=labels and options["weights"] == "random") as work:
        classes = work.test.classes
        if not labels:
            work.labels[:] = -1
            classes = networks.published_classes(work.model)
        work.write(classes)


@command("probe", option("--penalty", SIZE), option("--gradient", SIZE))
def probe(penalty, gradient, **options):
    """A new head on frozen features: logistic regression with an L2 --penalty, solved until --gradient is reached."""
    train = read(options["data"], "train")
    with working(options, "train", "test") as work:
        head, *others = heads(work.model)
        with frozen.without(work.model, head) as old:
            if others or not isinstance(old, nn.Linear):
                raise ValueError(
                    f"{options['architecture']} has no single linear last layer for a probe to replace: fine-tune it"
                )
            features = work.features(work.model, train, "features")
        fitted = logistic.fit(features, np.array(train.labels), len(train.classes), penalty, gradient)
        work.model.inner.set_submodule(head, networks.freeze(fitted.layer()).to(work.run.device))
        work.write(train.classes)


@command(
    "fine_tune", option("--frozen"), option("--epochs", COUNT), option("--batch-size", POSITIVE),
    option("--optimiser", click.Choice(list(fine_tune.OPTIMISERS))), option("--learning-rate", SIZE),
    option("--momentum", SHARE), option("--weight-decay", AMOUNT),
    option("--schedule", click.Choice(list(fine_tune.SCHEDULES))), option("--clip", AMOUNT),
    option("--augmentation", click.Choice(list(fine_tune.AUGMENTATIONS))),
    option("--batch-norm", click.Choice(list(fine_tune.BATCH_NORM))),
    option("--precision", click.Choice(runtime.PRECISIONS)), option("--seed", COUNT),
)  # fmt: skip
def tune(seed, **options):
    """All weights are trained; or all but --frozen, a part that sees the images first (`none`: all are).

    After 0 --epochs it has the weights that it came with, behind them a new head where the classes are others.
    """
    recipe = fine_tune.Recipe(**{name: options.pop(name) for name in fine_tune.Recipe.__annotations__})
    train = read(options["data"], "train")
    with working(options | {"seed": seed}, "train", "test", new_head=True) as work:
        run, measure = work.run, lambda n_epochs: work.accuracy(work.probabilities(n_epochs))
        with frozen.behind(work.model, options.pop("frozen"), options["image_size"]) as (forward, rest):
            source = fine_tune.Augmented(train, recipe.augmentation, options["image_size"], seed)
            if forward and recipe.augmentation != "none":
                raise ValueError("what a frozen part makes of an image is computed once: --augmentation none")
            if forward:
                source = fine_tune.Kept(work.features(forward, train, "train"), train.labels)
                shown = fine_tune.Kept(work.features(forward, work.test, "test"), work.labels)
                measure = partial(frozen.accuracy, rest, shown)
            how = (recipe, run.machine.workers, seed, measure, run.ranks, run.folder)
            epochs = []
            for epoch in fine_tune.fine_tune(rest, source, *how):
                epochs.append(epoch)
                work.log(len(epochs), training_loss=epoch.loss, test_accuracy=epoch.measured)
        work.write(train.classes, *map(list, zip(*epochs)))


if __name__ == "__main__":
    main()
