"""What training reached: test accuracy, and how many test images are ambiguous enough to explain."""

import click
import numpy as np
import pandas as pd
from _command import ListOf, Stage, option

from cxlib import runtime


@click.command(cls=Stage)
@option("--perturbed", ListOf(str))
@option("--finetuned", ListOf(str))
@option("--perturbed-folder")
@option("--finetuned-folder")
@option("--threshold", float)
@option("--metrics")
@option("--curves")
def main(perturbed, finetuned, perturbed_folder, finetuned_folder, threshold, metrics, curves):
    """Write headlines of all networks to --metrics and the fine-tuned ones' training curves to --curves."""
    headlines: dict[str, dict] = {"perturbed": {}, "finetuned": {}}
    rows = []
    for group, folder, names in (
        ("perturbed", perturbed_folder, perturbed),
        ("finetuned", finetuned_folder, finetuned),
    ):
        for name, report in runtime.read_cells(folder, names).items():
            headlines[group][name] = {"test_accuracy": accuracy(report)}
            for epoch, (loss, reached) in enumerate(zip(report["losses"], report["accuracies"]), 1):
                rows.append((group, name, epoch, loss, reached))
            if group == "finetuned":
                headlines[group][name] |= ambiguity(report, threshold)
    columns = ["group", "network", "epoch", "training_loss", "test_accuracy"]
    runtime.write_json(metrics, headlines)
    runtime.write_csv(curves, pd.DataFrame(rows, columns=columns))


def accuracy(report):
    """Share of the test images whose most probable class is the label."""
    return (report["probabilities"].argmax(1) == report["labels"]).mean()


def ambiguity(report, threshold):
    """How many test images have a second and a third class above the threshold, and the best epoch of the training."""
    p = np.sort(report["probabilities"], 1)
    result = {}
    for rank in (2, 3):
        result[f"share_p{rank}_above_threshold"] = (p[:, -rank] > threshold).mean()
        result[f"n_p{rank}_above_threshold"] = (p[:, -rank] > threshold).sum()
    if len(report["accuracies"]):
        result |= {"best_accuracy": report["accuracies"].max(), "best_epoch": report["accuracies"].argmax() + 1}
    return result


if __name__ == "__main__":
    main()
