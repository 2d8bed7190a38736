"""How long would a profile take on this machine? Runs it on a few painted images, and extrapolates by counts; no stage.

`python stages/estimate.py profile=paper` needs neither data nor weights: both are made up.
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
from _command import POSITIVE, Stage, settings
from dvc.repo import Repo
from hydra.errors import HydraException

from cxlib import runtime
from cxlib.datasets.images import read
from cxlib.synthbirds import species

ROOT = Path(__file__).parents[1]
#: Images to train on and to test on, and bytes with the archive, of data sets that are not there yet.
PUBLISHED = {
    "cub": (5994, 5794, 2.4e9),
    "food101": (75_750, 25_250, 10e9),
    "imagenet": (0, 50_000, 13e9),
    "photographs": (0, 20, 2e6),
}
#: Assumed share of test images with a second class above the threshold, where no limit says how many are explained.
AMBIGUOUS = 0.5
#: Share of all masks that differ on a trained network (measured); on made-up weights many hide the same pixels.
DISTINCT = 0.94
#: Epochs of the trainings that are timed.
EPOCHS = 4
#: Seconds of DVC's own bookkeeping, a stage (measured).
BOOKKEEPING = 0.5


def module(path):
    """A script as a module, under a name that hides nothing."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def counts(name, entry):
    """How many images a data set has to train on and to test on, and its bytes."""
    with contextlib.suppress(ValueError, OSError):
        n_train, n_test = 0, len(read(entry["path"], "test"))
        with contextlib.suppress(ValueError):  # a folder to test on only
            n_train = len(read(entry["path"], "train"))
        return n_train, n_test, sum(file.stat().st_size for file in Path(entry["path"]).rglob("*") if file.is_file())
    if name in PUBLISHED:
        return PUBLISHED[name]
    n_species = 4 * entry["species_per_family"]
    n_train, n_test = (n_species * entry[f"{side}_per_species"] for side in ("train", "test"))
    return n_train, n_test, 3 * (n_train + n_test) * entry["image_size"] ** 2


def made_up(folder, name, per_species):
    """A folder of painted birds, eight species, that is read as the data set is; the seconds of an image."""
    begun, side = time.perf_counter(), 128 if name == "synthbirds" else 400
    counted = {"train_per_species": per_species, "test_per_species": per_species}
    species.generate(folder, species_per_family=2, image_size=side, ambiguity=0.0, seed=0, **counted)
    if name in ("imagenet", "photographs"):
        (folder / "val" / "n01440764").mkdir(parents=True)
        for path in sorted((folder / "images").rglob("*.jpg"))[: 8 * per_species]:
            path.rename(folder / "val" / "n01440764" / path.name)
        for file in folder.glob("*.txt"):
            file.unlink()
    return (time.perf_counter() - begun) / (16 * per_species)


def option(words, name, value=None):
    """An option's last value in a command line, which counts; with a value, the command line with this one there."""
    if name not in words:
        return words if value is not None else 0
    place = len(words) - words[::-1].index(name)
    return words[place] if value is None else [*words[:place], str(value), *words[place + 1 :]]


def passed(stages, params, folder, per_species, limit, epochs=0):
    """Seconds of every stage in this process on painted images, `limit` of them explained, and the bytes it wrote."""
    painting = {name: made_up(folder / "data" / "sets" / name, name, per_species) for name in params["data"]}
    shutil.copytree(ROOT / "data" / "reference", folder / "data" / "reference")
    places = {entry["path"]: f"data/sets/{name}" for name, entry in params["data"].items()}
    seconds, written = {f"data@{name}": value for name, value in painting.items()}, {}
    with contextlib.chdir(folder):
        for stage in runtime.progress(stages, f"{limit} images", "stage"):
            _, script, *words = shlex.split(stage.cmd)
            words = [places.get(word, word) for word in words]
            changes = {
                "--weights": "random",
                "--max_images": limit,
                "--max_images_below": limit,
                "--threshold": 0,
                "--painted_seed": 0,
            }
            for name, value in (changes | {"--epochs": min(epochs, int(option(words, "--epochs")))}).items():
                words = option(words, name, value)
            begun = time.perf_counter()
            if not script.endswith("data.py"):
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    module(ROOT / script).main.main(words, standalone_mode=False)
                seconds[stage.name] = time.perf_counter() - begun
            outs = [Path(out.def_path) for out in stage.outs]
            written[stage.name] = sum(out.stat().st_size for out in outs if out.is_file())
    return seconds, written


def behind(words):
    """Whether a training leaves a part of the network frozen: what it makes of an image is computed once."""
    return option(words, "--frozen") not in (0, "none")


def work(stage, words, sizes, per_image, test):
    """Images of a stage, and seconds for all of them.

    Args:
        stage: its name.
        words: its command line.
        sizes: images to train on and to test on.
        per_image: measured seconds; of a training the test and the training step.
        test: seconds of an image in its network's test, as an image behind a mask takes at least.
    """
    n_train, n_test = sizes
    limit, below = int(option(words, "--max_images")), int(option(words, "--max_images_below"))
    kind = stage.partition("@")[0]
    if kind == "data":
        return n_train + n_test, (n_train + n_test) * per_image
    if kind == "train":
        # What a probe, and all that is trained behind a frozen part, make of the training images is made once.
        epochs, once = int(option(words, "--epochs")), "probe" in words or behind(words)
        n = epochs * n_train, n_test + n_train if once else max(1, epochs) * n_test
        return sum(n), n[0] * per_image[1] + n[1] * per_image[0]
    if kind in ("mask", "localise", "vit"):
        n = round(min(limit or n_test, AMBIGUOUS * n_test) + min(below or n_test, (1 - AMBIGUOUS) * n_test))
        n_masks = DISTINCT * 4 * words.count("--baselines") * words.count("--rules")
        n_masks *= 6 if kind == "vit" else words.count("--explainers") * words.count("--contrasts")
        return n, n * max(per_image, n_masks * test)
    if kind == "judge":
        n = round(min(limit or n_test, AMBIGUOUS * n_test))
        return n, n * per_image
    n = min(limit or n_test, n_test) if kind in ("perturb", "saturate", "gradient_norms", "intervene", "relate") else 0
    return n, n * per_image


def started(script):
    """Seconds that a process of a stage takes before it works, DVC's bookkeeping included."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "stages" / script, "--help"], check=True, capture_output=True)
    return time.perf_counter() - begun + BOOKKEEPING


@click.command(cls=Stage)
@click.argument("overrides", nargs=-1)
@click.option(
    "--images", type=POSITIVE, default=8, show_default=True, help="To explain, and twice as many; 1 on a CPU."
)
def main(overrides, images):
    """Print hours, memory and disk of the pipeline under Hydra's OVERRIDES, such as profile=paper, stage by stage."""
    settings()
    try:
        params = yaml.safe_load(module(ROOT / "conf" / "compose.py").composed(*overrides))
    except HydraException as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    sizes = {name: counts(name, entry) for name, entry in params["data"].items()}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        shutil.copytree(ROOT / ".dvc", home / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        for file in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / file, home / file)
        repo = Repo(home, config={"core": {"no_scm": True}})
        stages = list(networkx.dfs_postorder_nodes(repo.index.graph))
        (few, _), (more, written) = (passed(stages, params, home / f"{n}", n, n * images) for n in (1, 2))
        training = [stage for stage in stages if int(option(shlex.split(stage.cmd), "--epochs"))]
        trained, _ = passed(training, params, home / "trained", 2, images, EPOCHS)
    torch_starts, table_starts = started("train.py"), started("table.py")
    total, disk = 0.0, sum(size for *_, size in sizes.values())
    click.echo(f"{'stage':32}{'images':>10}{'s/image':>10}{'hours':>10}")
    for stage in stages:
        words = shlex.split(stage.cmd)
        data = next((name for name, entry in params["data"].items() if entry["path"] in words), "")
        n_train, n_test, _ = sizes.get(data, (0, 0, 0))
        timed = 8 if stage.name.startswith("train@") else images
        slope = max(0.0, (more[stage.name] - few[stage.name]) / timed)
        fixed = max(0.0, more[stage.name] - 2 * timed * slope)
        per_image, test = slope, 0.0
        if stage.name.startswith("data@"):
            per_image, fixed = (few[stage.name], 0) if data == "synthbirds" else (0.0, 0)
        if stage.name.startswith("train@"):
            # Trained for E epochs it is tested E times.
            tested = 0 if behind(words) else slope * (EPOCHS - 1) / EPOCHS
            step = (trained.get(stage.name, 0) - more[stage.name]) / (16 * EPOCHS) - tested
            per_image = slope, max(0.0, step)
        elif (network := f"train@{stage.name.partition('@')[2]}") in more:
            test = max(0.0, (more[network] - few[network]) / 8)
        n, seconds = work(stage.name, words, (n_train, n_test), per_image, test)
        seconds += fixed + (table_starts if "/table.py" in stage.cmd or "/figure.py" in stage.cmd else torch_starts)
        total += seconds
        disk += written[stage.name] * (
            max(1, n / (2 * images)) if "@" in stage.name and "train" not in stage.name else 1
        )
        click.echo(f"{stage.name:32}{n or '':>10}{seconds / n if n else 0:>10.3g}{seconds / 3600:>10.3f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    hours = f"{total / 3600:.2f} hours ({total / 60:.1f} minutes)"
    click.echo(
        f"{hours}, {peak:.1f} GiB of memory, {2 * disk / 1e9:.1f} GB on disk with DVC's cache; downloads come on top."
    )
    told = ", ".join(f"{name} {n_train} and {n_test}" for name, (n_train, n_test, _) in sizes.items())
    click.echo(f"Images to train on and to test on: {told}. Assumed to be above the threshold: {AMBIGUOUS:.0%}.")


if __name__ == "__main__":
    main()
