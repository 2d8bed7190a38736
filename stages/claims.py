"""Judge the review's claims on this run's values of single images, beside the published numbers."""

import click
import numpy as np
import pandas as pd
from _command import COUNT, Stage, option, several

from cxlib import runtime
from cxlib.review.report import claims


@click.command(cls=Stage)
@several("--perturbed")
@several("--masked")
@option("--seed", COUNT)
@option("--perturbation-folder")
@option("--masking-folder")
@option("--localisation-folder")
@option("--published-perturbation")
@option("--published-table")
@option("--table")
@option("--metrics")
def main(perturbed, masked, seed, perturbation_folder, masking_folder, localisation_folder, table, metrics, **options):
    """Write the verdicts to --metrics and every margin, each network's too, to --table."""
    rng = np.random.default_rng(seed)
    perturbation = runtime.read_cells(perturbation_folder, perturbed)
    masking = runtime.read_cells(masking_folder, masked)
    localisation = runtime.read_cells(localisation_folder, masked)
    margins = claims.perturbation_margins(perturbation, pd.read_csv(options["published_perturbation"]), rng)
    margins += claims.masking_margins(masking, pd.read_csv(options["published_table"]), rng)
    margins += claims.localisation_margins(localisation, rng)
    runtime.write_metrics(metrics, claims.verdicts(margins))
    runtime.write_csv(table, pd.DataFrame(margins))


if __name__ == "__main__":
    main()
