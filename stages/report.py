"""Everything in one page: the ledger, what one can explore, charts, figures and the settings."""

import hashlib
import platform
from importlib import metadata
from pathlib import Path

import click
import pandas as pd
from _command import Stage, option, several

from cxlib import runtime
from cxlib.review.report import page

#: Whose versions a number may depend on.
PACKAGES = ("cxlib", "torch", "torchvision", "timm", "numpy", "scipy", "pandas", "pillow", "matplotlib", "dvc")


@click.command(cls=Stage)
@several("--networks")
@option("--explored")
@option("--results")
@option("--settings")
@option("--out")
def main(networks, explored, results, settings, out):
    """Write the page of the tables and figures in --results, and of NETWORK.npz in --explored, to --out."""
    cells = runtime.read_cells(explored, networks)
    tables = {name: pd.read_csv(Path(results, f"{name}.csv")) for name in page.TABLES}
    figures = {name: Path(results, f"{name}.png").read_bytes() for name in page.FIGURES}
    ledger_hash = hashlib.sha256(Path(results, "claims.csv").read_bytes()).hexdigest()
    versions = {"Python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    parameters = "\n".join(runtime.read_lines(settings))
    html = page.build(tables, figures, cells, parameters, versions, ledger_hash)
    with runtime.atomic(out) as partial:
        partial.write_text(html, encoding="utf-8")


if __name__ == "__main__":
    main()
