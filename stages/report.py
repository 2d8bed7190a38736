"""Everything in one page: the ledger, what one can explore, charts, figures and the settings."""

import hashlib
import platform
from importlib import metadata
from pathlib import Path

import click
import pandas as pd
from _command import Stage, gathered, keep_only, option, several

from cxlib import runtime
from cxlib.review.report import page

#: Whose versions a number may depend on.
PACKAGES = ("cxlib", "torch", "torchvision", "timm", "numpy", "scipy", "pandas", "pillow", "matplotlib", "dvc")


@click.command(cls=Stage)
@several("--networks")
@several("--figures")
@several("--more")
@option("--explored")
@option("--pictures")
@option("--results")
@option("--settings")
@option("--out")
def main(networks, figures, more, explored, pictures, results, settings, out):
    """Write the page of tables in --results, of NETWORK.npz in --explored and of figures in --pictures to --out.

    Every profile has the --figures, and some --more; what else lies in --pictures is removed.
    """
    cells = gathered(explored, networks)
    tables = {name: pd.read_csv(Path(results, f"{name}.csv")) for name in page.TABLES}
    shown = {name: Path(pictures, f"{name}.webp").read_bytes() for name in dict.fromkeys((*page.FIGURES, *more))}
    keep_only((*figures, *more), pictures, ".webp")
    ledger_hash = hashlib.sha256(Path(results, "claims.csv").read_bytes()).hexdigest()
    versions = {"Python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
    parameters = "\n".join(runtime.read_lines(settings))
    html = page.build(tables, shown, cells, parameters, versions, ledger_hash)
    with runtime.atomic(out) as partial:
        partial.write_text(html, encoding="utf-8")


if __name__ == "__main__":
    main()
