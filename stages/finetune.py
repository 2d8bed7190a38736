"""Train one network on a folder of images, or take its weights as they are (0 epochs), and test it."""

from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, ForNetwork, SharedStage, option, workplace

from cxlib import networks, runs, runtime, training
from cxlib.datasets import images


@click.command(cls=SharedStage)
@option("--network", is_eager=True)
@option("--data")
@option("--weights", ForNetwork())
@option("--weights-path")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--epochs", ForNetwork(COUNT))
@option("--batch-size", ForNetwork(POSITIVE))
@option("--learning-rate", ForNetwork(float))
@option("--momentum", ForNetwork(float))
@option("--weight-decay", ForNetwork(float))
@option("--schedule", ForNetwork(click.Choice(list(training.SCHEDULES))))
@option("--clip", ForNetwork(click.FloatRange(min=0)))
@option("--augmentation", ForNetwork(click.Choice(list(training.AUGMENTATIONS))))
@option("--batch-norm", ForNetwork(click.Choice(list(training.BATCH_NORM))))
@option("--precision", click.Choice(runtime.PRECISIONS))
@option("--workers", COUNT)
@option("--device")
@option("--threads", POSITIVE)
@option("--seed", COUNT)
@option("--out")
@option("--report")
@option("--curves")
def main(
    network,
    data,
    weights,
    weights_path,
    image_size,
    crop,
    workers,
    device,
    threads,
    seed,
    out,
    report,
    curves,
    **recipe,
):
    """Write the trained network to --out, its test probabilities and training curves to --report.

    --curves is a folder for dvclive, written while training. An interrupted training goes on where it stood.
    The weights and the recipe may differ by network: `0.003,squeezenet1_0=0.01`.
    """
    recipe = training.Recipe(**recipe)
    with runs.joined() as ranks:
        device = runtime.device(device, threads)
        test, train = images.read(data, "test"), images.read(data, "train") if recipe.epochs else None
        n_classes = len(test.classes) if train or weights == "random" else None
        with runtime.seeded(seed):
            model = networks.build(network, None if weights == "random" else weights, n_classes, weights_path)
        model.to(device, memory_format=torch.channels_last)
        transform, labels = images.preprocessing(image_size, crop), np.array(test.labels)

        inputs = [*Path(data).glob("*.txt"), *test.paths, *(train.paths if train else ())]
        inputs += [path for path in (Path(weights), *Path(weights_path).glob("*.pth")) if path.is_file()]
        with workplace(ranks, inputs) as folder:
            probabilities = partial(training.test, model, test, transform, recipe.batch_size, ranks, folder)
            log = live(curves, ranks)

            def accuracy(n_epochs):
                p = probabilities(n_epochs)
                return None if p is None else float((p.argmax(1) == labels).mean())

            epochs = []
            if train:
                how = (recipe, image_size, workers, seed, accuracy, ranks, folder)
                for epoch in training.fine_tune(model, train, *how):
                    epochs.append(epoch)
                    log(len(epochs), training_loss=epoch.loss, test_accuracy=epoch.measured)
            p = probabilities(len(epochs))
            if p is None:
                return
            if p.shape[1] != len(test.classes):
                raise ValueError(
                    f"{network} with weights {weights} tells {p.shape[1]} classes apart, {data} has"
                    f" {len(test.classes)}: train it, --epochs 1 or more"
                )
            networks.save(model, out)
            runtime.write_arrays(
                report,
                probabilities=p,
                labels=labels,
                losses=np.array([epoch.loss for epoch in epochs]),
                accuracies=np.array([epoch.measured for epoch in epochs]),
            )
            reached = float((p.argmax(1) == labels).mean())
            if not epochs:
                log(0, test_accuracy=reached)
            click.echo(f"{network}: test accuracy {reached:.1%} of {len(test)} images")


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
