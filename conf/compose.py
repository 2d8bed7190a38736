"""Print the parameters that `dvc exp run` composes from this folder: `python conf/compose.py profile=paper seed=1`."""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf


def composed(*overrides: str) -> str:
    """The composed parameters as YAML, as DVC writes them to params.yaml."""
    with initialize_config_dir(str(Path(__file__).resolve().parent), version_base=None):
        config = compose(config_name="config", overrides=list(overrides))
    OmegaConf.resolve(config)
    return OmegaConf.to_yaml(config)


if __name__ == "__main__":
    print(composed(*sys.argv[1:]), end="")
