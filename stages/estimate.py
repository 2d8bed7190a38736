"""How long would a profile take on this machine? Runs the pipeline on a few painted images, and extrapolates by counts.

`python stages/estimate.py profile=paper` needs no data and no weights: both are made up. It is no stage.
"""

import contextlib
import importlib.util
import io
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import networkx
import yaml
from _command import Stage, settings
from dvc.repo import Repo

from cxlib import runtime
from cxlib.datasets import images
from cxlib.synthbirds import species

ROOT = Path(__file__).parents[1]
#: Images to train on and to test on, and bytes with the archive, of data sets that are not there yet.
PUBLISHED = {"cub": (5994, 5794, 2.4e9), "food101": (75_750, 25_250, 10e9), "imagenet": (0, 50_000, 13e9)}
#: Share of test images with a second class above the threshold, where no limit says how many are explained.
AMBIGUOUS = 0.3
#: Share of all masks that differ on a trained network (measured); on made-up weights many hide the same pixels.
DISTINCT = 0.94
#: Seconds of DVC's own bookkeeping, a stage.
BOOKKEEPING = 0.5


def module(path):
    """A script as a module, under a name that hides nothing."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def made_up(folder, name, n_images):
    """A folder of painted birds that is read as the data set is."""
    side = 128 if name == "synthbirds" else 400
    species.generate(folder, species_per_family=2, train_per_species=n_images, test_per_species=n_images,
                     image_size=side, ambiguity=0.0, seed=0)  # fmt: skip
    if name == "imagenet":
        painted = sorted((folder / "images").rglob("*.jpg"))
        (folder / "val" / "n01440764").mkdir(parents=True)
        for path in painted:
            path.rename(folder / "val" / "n01440764" / path.name)
        (folder / "images.txt").unlink()


def counts(name, entry):
    """How many images a data set has to train on and to test on, and its bytes."""
    with contextlib.suppress(ValueError, OSError):
        sizes = [len(images.read(entry["path"], split)) for split in ("train", "test")]
        return *sizes, sum(file.stat().st_size for file in Path(entry["path"]).rglob("*") if file.is_file())
    if name in PUBLISHED:
        return PUBLISHED[name]
    options = entry["options"]
    n_species = 4 * options["species_per_family"]
    return n_species * options["train_per_species"], n_species * options["test_per_species"], 5e7


def option(words, name, value=None):
    """An option's value in a command line; with a value, the command line with this one in its place."""
    place = words.index(name) + 1 if name in words else None
    if value is None:
        return words[place] if place else None
    return words if place is None else [*words[:place], str(value), *words[place + 1 :]]


def passed(stages, params, folder, per_species, n_images):
    """Seconds of every stage in this process, on so many images, and what it wrote in bytes; in the folder."""
    for name in params["data"]:
        made_up(folder / "data" / "sets" / name, name, per_species)
    shutil.copytree(ROOT / "data" / "reference", folder / "data" / "reference")
    seconds, written = {}, {}
    with contextlib.chdir(folder):
        for stage in runtime.progress(stages, f"{n_images} images", "stage"):
            _, script, *words = shlex.split(stage.cmd)
            for entry, name in ((entry, name) for name, entry in params["data"].items()):
                words = [f"data/sets/{name}" if word == entry["path"] else word for word in words]
            changes = {"--weights": "random", "--max_images": n_images, "--max_images_below": n_images, "--threshold": 0}
            changes |= {"--epochs": min(1, int(option(words, "--epochs") or 0))}
            for name, value in changes.items():
                words = option(words, name, value)
            begun = time.perf_counter()
            if not script.endswith("/data.py"):
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    module(ROOT / script).main.main(words, standalone_mode=False)
            seconds[stage.name] = time.perf_counter() - begun
            outs = [Path(out.def_path) for out in stage.outs]
            written[stage.name] = sum(out.stat().st_size for out in outs if out.is_file())
    return seconds, written


def started(script):
    """Seconds that a process of a stage takes before it works."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, script, "--help"], check=True, capture_output=True)
    return time.perf_counter() - begun + BOOKKEEPING


def units(stage, words, params, sizes, per_image, forward):
    """What a stage takes for its own number of images: seconds, and a word on the count it rests on."""
    data = next((name for name, entry in params["data"].items() if entry["path"] in words), None)
    n_train, n_test = sizes[data][:2] if data else (0, 0)
    limit = int(option(words, "--max_images") or 0)
    kind = stage.partition("@")[0]
    if kind == "train":
        epochs = int(option(words, "--epochs"))
        return epochs * n_train * per_image[1] + max(1, epochs) * n_test * per_image[0], f"{epochs} x {n_train} + {n_test} images"
    if kind in ("perturb", "saturate", "gradient_norms"):
        n = min(limit or n_test, n_test)
        return n * per_image, f"{n} images"
    if kind in ("mask", "localise", "vit"):
        below = int(option(words, "--max_images_below"))
        n = round(min(limit or n_test, AMBIGUOUS * n_test) + min(below or n_test, (1 - AMBIGUOUS) * n_test))
        n_masks = DISTINCT * 4 * words.count("--baselines") * words.count("--rules")
        n_masks *= 6 if kind == "vit" else words.count("--explainers") * words.count("--contrasts")
        return n * max(per_image, n_masks * forward), f"{n} images"
    return 0, ""


@click.command(cls=Stage)
@click.argument("overrides", nargs=-1)
@click.option("--images", "n_images", default=8, show_default=True, help="Images that are timed, and twice as many.")
def main(overrides, n_images):
    """Print hours, memory and disk of the pipeline under Hydra's OVERRIDES, such as profile=paper, stage by stage."""
    machine = settings()
    params = yaml.safe_load(module(ROOT / "conf" / "compose.py").composed(*overrides))
    sizes = {name: counts(name, entry) for name, entry in params["data"].items()}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        shutil.copytree(ROOT / ".dvc", home / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        (home / "params.yaml").write_text(yaml.safe_dump(params))
        for file in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / file, home / file)
        with contextlib.chdir(home):
            stages = list(networkx.dfs_postorder_nodes(Repo(uninitialized=False).index.graph))
        n = (n_images, 2 * n_images)
        (few, _), (more, written) = (passed(stages, params, home / str(m), i + 1, m) for i, m in enumerate(n))
        start = {torch: started(ROOT / "stages" / file) for torch, file in ((True, "train.py"), (False, "claims.py"))}
    print(few, more, start, sizes)


if __name__ == "__main__":
    main()
