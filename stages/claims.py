"""Judge the review's claims on this run's values of single images, beside the published numbers."""

import click
import numpy as np
import pandas as pd
from _command import COUNT, ListOf, Stage, option

from cxlib import claims, runtime


@click.command(cls=Stage)
@option("--perturbed", ListOf(str))
@option("--perturbation-folder")
@option("--masked", ListOf(str))
@option("--masking-folder")
@option("--localisation-folder")
@option("--published-perturbation")
@option("--published-table")
@option("--seed", COUNT)
@option("--metrics")
@option("--table")
def main(perturbed, perturbation_folder, masked, masking_folder, localisation_folder, **options):
    """Write the verdicts to --metrics and every margin, each network's too, to --table."""
    rng = np.random.default_rng(options["seed"])
    perturbation = runtime.read_cells(perturbation_folder, perturbed)
    masking = runtime.read_cells(masking_folder, masked)
    localisation = runtime.read_cells(localisation_folder, masked)
    margins = claims.perturbation_margins(perturbation, pd.read_csv(options["published_perturbation"]), rng)
    margins += claims.masking_margins(masking, pd.read_csv(options["published_table"]), rng)
    margins += claims.localisation_margins(localisation, rng)
    runtime.write_json(options["metrics"], claims.verdicts(margins))
    runtime.write_csv(options["table"], pd.DataFrame(margins))


if __name__ == "__main__":
    main()
