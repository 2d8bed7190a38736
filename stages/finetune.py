"""Train one network on a folder of images, or take its weights as they are (0 epochs), and test it."""

import click
import numpy as np
import torch
from _command import COUNT, POSITIVE, Stage, option

from cxlib import networks, runtime, training
from cxlib.datasets import images


@click.command(cls=Stage)
@option("--network")
@option("--data")
@option("--weights")
@option("--weights-path")
@option("--image-size", POSITIVE)
@option("--crop", bool)
@option("--epochs", COUNT)
@option("--batch-size", POSITIVE)
@option("--learning-rate", float)
@option("--momentum", float)
@option("--weight-decay", float)
@option("--schedule", click.Choice(list(training.SCHEDULES)))
@option("--augmentation", click.Choice(list(training.AUGMENTATIONS)))
@option("--batch-norm", click.Choice(list(training.BATCH_NORM)))
@option("--workers", COUNT)
@option("--device")
@option("--seed", COUNT)
@option("--out")
@option("--report")
def main(network, data, weights, weights_path, image_size, crop, workers, device, seed, out, report, **recipe):
    """Write the trained network to --out, its test probabilities and training curves to --report."""
    recipe = training.Recipe(**recipe)
    device = runtime.device(device)
    test = images.read(data, "test")
    n_classes = len(test.classes) if recipe.epochs or weights == "random" else None
    with runtime.seeded(seed):
        model = networks.build(network, None if weights == "random" else weights, n_classes, weights_path)
    model.to(device, memory_format=torch.channels_last)

    transform = images.preprocessing(image_size, crop)
    everything = range(len(test))

    def probabilities() -> np.ndarray:
        batches = images.batches(test, everything, transform, recipe.batch_size, device, f"test {network}")
        return training.predict(model, (x for _, x, _ in batches)).numpy()

    losses, accuracies = [], []
    if recipe.epochs:
        train = images.read(data, "train")
        for loss in training.fine_tune(model, train, recipe, image_size, workers, seed):
            p = probabilities()
            losses.append(loss)
            accuracies.append((p.argmax(1) == test.labels).mean())
    else:
        p = probabilities()
        if p.shape[1] != len(test.classes):
            raise ValueError(
                f"{network} with weights {weights} tells {p.shape[1]} classes apart, {data} has {len(test.classes)}:"
                " train it, --epochs 1 or more"
            )
    networks.save(model, out)
    runtime.write_arrays(
        report, probabilities=p, labels=np.array(test.labels), losses=np.array(losses), accuracies=np.array(accuracies)
    )
    click.echo(f"{network}: test accuracy {(p.argmax(1) == test.labels).mean():.1%} of {len(test)} images")


if __name__ == "__main__":
    main()
