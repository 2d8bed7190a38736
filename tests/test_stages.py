"""The whole pipeline in miniature, through the command lines of dvc.yaml; and what bad input gets: one line."""

import contextlib
import csv
import hashlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

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

from cxlib import networks, runtime
from cxlib.datasets import images
from cxlib.metrics import parts

MINIATURE = (
    "synthbirds.species_per_family=2",
    "synthbirds.train_per_species=2",
    "synthbirds.test_per_species=3",
    "synthbirds.image_size=40",
    "perturb.networks=[squeezenet1_1,mobilenet_v3_small]",
    "perturb.image_size=32",
    "perturb.n_iterations=[1,2]",
    "perturb.max_images=5",
    "perturb.batch_size=3",
    "perturb.training.epochs=1",
    "gradient_norms.network=squeezenet1_1",
    "gradient_norms.max_images=4",
    "gradient_norms.batch_size=3",
    "saturation.max_images=4",
    "saturation.n_iterations=3",
    "finetune.image_size=32",
    "finetune.epochs=2",
    "masking.blur_kernel=9",
    "masking.blur_sigma=2",
    "masking.max_images=0",
    "masking.max_images_below=5",
    "masking.batch_size=8",
    "localisation.max_images_below=5",
    "localisation.batch_size=8",
    "vit.image_size=32",
    "vit.training.epochs=1",
    "vit.blur_kernel=9",
    "vit.blur_sigma=2",
    "vit.max_images=5",
    "vit.max_images_below=5",
    "vit.batch_size=4",
    "device=cpu",
    "threads=1",
)


def run(cmd, **changes):
    """Run a stage's command line in this process, some of its options changed; in the current folder."""
    script, options = arguments(cmd)
    for name, value in changes.items():
        option = f"--{name.replace('_', '-')}"
        assert option in options
        options[option] = str(value)
    return CliRunner().invoke(command(script), [word for pair in options.items() for word in pair])


def succeed(cmd, **changes):
    result = run(cmd, **changes)
    assert result.exit_code == 0, f"{cmd}\n{result.output}\n{result.exception!r}"
    return result


def in_order(repo):
    return list(nx.dfs_postorder_nodes(repo.index.graph))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder in which every stage of dvc.yaml has run, the stages' command lines, and what they printed."""
    folder = tmp_path_factory.mktemp("pipeline") / "repo"
    repo = resolved(folder, composed("profile=mini", *MINIATURE))
    shutil.copytree(ROOT / "data" / "reference", folder / "data" / "reference")
    printed = {}
    with contextlib.chdir(folder):
        for stage in in_order(repo):
            if stage.name.startswith(("synthbirds", "finetune@")):
                printed[stage.name] = succeed(stage.cmd)
        # A threshold that leaves images on both of its sides, whatever these two epochs reached.
        p_2 = np.sort(np.load("data/finetuned/reports/vgg16_bn_narrow.npz")["probabilities"], 1)[:, -2]
        threshold = float(np.median(p_2))
        shutil.rmtree(folder / ".dvc")
        repo = resolved(folder, composed("profile=mini", *MINIATURE, f"masking.threshold={threshold}"))
        stages = in_order(repo)
        for stage in stages:
            if stage.name not in printed:
                printed[stage.name] = run(stage.cmd)
    commands = {stage.name: stage.cmd for stage in stages}
    n_above = int((p_2 > threshold).sum())
    return SimpleNamespace(
        folder=folder, commands=commands, printed=printed, n_above=n_above, outs=[o for s in stages for o in s.outs]
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


# --- every stage, in order --------------------------------------------------------------------------------------


def test_every_stage_succeeds(pipeline):
    assert set(pipeline.printed) == set(pipeline.commands)
    assert {name: result.output for name, result in pipeline.printed.items() if result.exit_code} == {}


def test_every_output_of_every_stage_is_there(pipeline):
    missing = [out.def_path for out in pipeline.outs if not (pipeline.folder / out.def_path).exists()]
    assert missing == []
    promised = [
        "plots/perturbation.csv", "plots/table1.csv", "plots/under_threshold.csv",
        "plots/localisation.csv", "plots/localisation_by_p_2.csv", "metrics/localisation.json",
        "metrics/finetune.json", "metrics/perturbation.json", "metrics/table1.json", "metrics/claims.json",
        "plots/localisation.png",
        "plots/figure_1_2.png", "plots/figure_3.png", "plots/figure_4.png", "plots/figure_5.png",
        "plots/figure_6.png", "metrics/vit.json",
    ]  # fmt: skip
    assert {out.def_path for out in pipeline.outs} >= set(promised)


def test_stages_write_nothing_else(pipeline):
    outs = [out.def_path for out in pipeline.outs]
    given = ("data/reference/", ".dvc/", "params.yaml", "dvc.yaml", ".dvcignore")
    extra = [
        name
        for name in contents(pipeline.folder)
        if not name.startswith(given) and not any(name == out or name.startswith(f"{out}/") for out in outs)
    ]
    assert extra == []


def numbers(tree):
    for value in tree.values():
        yield from numbers(value) if isinstance(value, dict) else [value]


def find(tree, key):
    """The subtree below a key, at any depth."""
    if key in tree:
        return tree[key]
    return next((found for value in tree.values() if isinstance(value, dict) and (found := find(value, key))), None)


def test_metrics_are_few_finite_numbers_without_lists(pipeline):
    files = sorted((pipeline.folder / "metrics").iterdir())
    assert len(files) >= 5
    for file in files:
        assert "NaN" not in file.read_text(), file
        values = list(numbers(json.loads(file.read_text())))
        # Four numbers a margin: the claims are allowed a few more.
        assert 0 < len(values) <= (64 if file.stem == "claims" else 46), f"{file}: {len(values)} numbers"
        assert all(isinstance(value, int | float) for value in values), file
        assert list(json.loads(file.read_text())) == sorted(json.loads(file.read_text()))


def test_figures_are_pictures(pipeline):
    pictures = sorted((pipeline.folder / "plots").glob("*.png"))
    assert len(pictures) == sum(out.def_path.endswith(".png") for out in pipeline.outs) > 5
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(10**6)) > 2, path


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
        assert len(rows) == 3 * 2 * (1 + 3 * 2 * 3 * 2)
        assert {row["n_images"] for row in rows} == {str(n_images)}
        assert all(float(row["low"]) <= float(row["relative_probability"]) <= float(row["high"]) for row in rows)


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
    assert counts["> 0.1"] == (cell["p_2"] > 0.1).sum()


def test_the_gaussian_control_is_measured_on_the_regions_of_the_folder(pipeline):
    """The truth of every image once more, from the folder's files and the report."""
    cell = np.load(pipeline.folder / "data" / "localisation" / "vgg16_bn_narrow.npz")
    folder = pipeline.folder / "data" / "synthbirds"
    samples, known = images.read(folder), parts.read(folder, 0.1)
    report = np.load(pipeline.folder / "data" / "finetuned" / "reports" / "vgg16_bn_narrow.npz")["probabilities"]
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
    metrics = json.loads((pipeline.folder / "metrics" / "localisation.json").read_text())
    cell = np.load(pipeline.folder / "data" / "localisation" / "vgg16_bn_narrow.npz")
    above = np.flatnonzero(cell["above"])
    for c, contrast in enumerate(cell["contrasts"]):
        gains = {}
        for e, explainer in enumerate(cell["explainers"]):
            values = {"gain": [], "hit": [], "exchanged": []}
            for i in above:
                for t in range(2):
                    sign = 2 if explainer == "gradient" else int(cell["labels"][i] == cell["leading"][i, 1]) ^ t
                    values["gain"].append(cell["share"][i, e, c, t, sign] - cell["area"][i])
                    values["exchanged"].append(cell["share"][i, e, c, 1 - t, sign] - cell["area"][i])
                    values["hit"].append(cell["hit"][i, e, c, t, sign])
            gains[explainer] = {name: np.mean(list_) for name, list_ in values.items()}
            assert metrics[contrast][f"gain_{explainer}"] == pytest.approx(gains[explainer]["gain"], rel=1e-5, abs=1e-9)
        for name, key in (("gain", "gain_mean"), ("exchanged", "gain_exchanged"), ("hit", "hit")):
            expected = np.mean([gain[name] for gain in gains.values()])
            assert metrics[contrast][key] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert metrics["area"] == pytest.approx(cell["area"][above].mean(), rel=1e-5)
    assert metrics["discriminative"] is True


def test_the_table_by_ambiguity_holds_every_masked_image_once(pipeline):
    rows = read(pipeline.folder / "plots" / "by_ambiguity.csv")
    counts = {row["p_2"]: int(row["n_images"]) for row in rows}
    assert sum(counts.values()) == pipeline.n_above + 5
    assert len(rows) == len(counts) * 2 * (1 + 2 * 3 * 2)
    cell = np.load(pipeline.folder / "data" / "masking" / "vgg16_bn_narrow.npz")
    assert counts.get("> 0.1", 0) == (cell["p_2"] > 0.1).sum()


def test_metrics_tell_what_the_reports_hold(pipeline):
    metrics = json.loads((pipeline.folder / "metrics" / "finetune.json").read_text())
    explained = find(metrics, "vgg16_bn_narrow")
    report = np.load(pipeline.folder / "data/finetuned/reports/vgg16_bn_narrow.npz")
    accuracy = (report["probabilities"].argmax(1) == report["labels"]).mean()
    assert explained["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert explained["n_p2_above_threshold"] == pipeline.n_above
    assert all("test_accuracy" in find(metrics, name) for name in ("squeezenet1_1", "mobilenet_v3_small"))
    assert len(report["losses"]) == len(report["accuracies"]) == 2


def test_perturbations_start_from_the_same_images_for_every_network(pipeline):
    cells = [np.load(path)["images"].tolist() for path in (pipeline.folder / "data" / "perturbation").iterdir()]
    assert len(cells) == 2
    assert cells[0] == cells[1] == sorted(cells[0])


def test_maps_show_images_above_the_threshold(pipeline):
    for name, n_classes in (("figure_3", 2), ("figure_4", 3)):
        with np.load(pipeline.folder / "data" / "maps" / f"{name}.npz") as maps:
            threshold = float(arguments(pipeline.commands["maps_3"])[1]["--threshold"])
            assert (maps["probabilities"][:, n_classes - 1] > threshold).all()
            assert maps["names"].shape[1] == n_classes
            if name == "figure_3":
                assert maps["maps"].shape == (4, 3, 2, 2, 32, 32)


@pytest.mark.parametrize(
    "name",
    [
        "synthbirds", "contact_sheet", "finetune@vgg16_bn_narrow", "perturb@squeezenet1_1", "mask@vgg16_bn_narrow",
        "maps_3", "figure_3", "maps_4", "figure_4", "accuracy", "figure_1_2",
        "gradient_norms", "figure_6", "tables", "table_figures", "claims", "perturbation", "localise@vgg16_bn_narrow",
        "localisation", "figure_localisation", "saturate@squeezenet1_1", "saturation", "figure_saturation",
        "figure_published",
    ],
)  # fmt: skip
def test_stage_writes_the_same_bytes_again(here, name):
    before = contents(here.folder)
    succeed(here.commands[name])
    after = contents(here.folder)
    assert after.keys() == before.keys()
    assert [file for file in after if after[file] != before[file]] == []


def test_batch_size_changes_no_result(here, tmp_path):
    succeed(here.commands["perturb@squeezenet1_1"], batch_size=5, out=tmp_path / "cell.npz")
    with np.load("data/perturbation/squeezenet1_1.npz") as ours, np.load(tmp_path / "cell.npz") as other:
        np.testing.assert_allclose(other["changes"], ours["changes"], atol=2e-3)


# --- what the headlines say is what the values of single images say ---------------------------------------------


def test_perturbation_headlines_are_means_over_settings_and_networks(pipeline):
    metrics = json.loads((pipeline.folder / "metrics" / "perturbation.json").read_text())
    cells = [dict(np.load(path)) for path in (pipeline.folder / "data" / "perturbation").iterdir()]
    for c, contrast in enumerate(cells[0]["contrasts"]):
        for q, quantity in enumerate(("accuracy", "p_t", "y_t")):
            expected = np.mean([cell["changes"][c, :, :, q].mean() for cell in cells])
            assert metrics[contrast][quantity] == pytest.approx(expected, rel=1e-5, abs=1e-9)
        share = np.mean([cell["zero_share"][c].mean() for cell in cells])
        assert metrics[contrast]["zero_gradients_per_million"] == pytest.approx(1e6 * share, rel=1e-5)
    assert metrics["n_images"] == 5


def test_pixels_that_the_first_convolution_skips_are_counted_as_zero_gradients(pipeline):
    """SqueezeNet's kernel of 3 and stride of 2, without padding, leaves the last row and column of 32 unseen."""
    shares = np.load(pipeline.folder / "data" / "perturbation" / "squeezenet1_1.npz")["zero_share"]
    unseen = 1 - (31 / 32) ** 2
    assert (shares >= unseen - 1e-9).all()
    # A logit of SqueezeNet ends in a ReLU, so that `original` may have no gradient at all; the others have one.
    assert (shares[1:] < unseen + 0.2).all()


def test_table_1_headlines_are_means_over_explainers_and_baselines(pipeline):
    metrics = json.loads((pipeline.folder / "metrics" / "table1.json").read_text())
    cell = np.load(pipeline.folder / "data" / "masking" / "vgg16_bn_narrow.npz")
    masked = cell["masked"][cell["above"]].mean((0, 1, 3))  # (targets, features, contrasts, rules)
    axes = [list(map(str, cell[axis])) for axis in ("targets", "features", "contrasts", "rules")]
    for index in np.ndindex(masked.shape):
        target, features, contrast, rule = (axis[i] for axis, i in zip(axes, index))
        assert metrics[f"{rule}_{target}_{features}_{contrast}"] == pytest.approx(masked[index], rel=1e-5)
    assert metrics["t1_unmasked"] == pytest.approx(cell["unmasked"][cell["above"], 0].mean(), rel=1e-5)
    assert (metrics["n_images"], metrics["n_images_below"]) == (pipeline.n_above, 5)


def test_accuracy_headlines_and_curves_are_the_reports(pipeline):
    explained = json.loads((pipeline.folder / "metrics" / "finetune.json").read_text())["finetuned"]["vgg16_bn_narrow"]
    report = np.load(pipeline.folder / "data" / "finetuned" / "reports" / "vgg16_bn_narrow.npz")
    threshold = float(arguments(pipeline.commands["accuracy"])[1]["--threshold"])
    for rank in (2, 3):
        above = [sorted(p)[-rank] > threshold for p in report["probabilities"].tolist()]
        assert explained[f"n_p{rank}_above_threshold"] == sum(above)
        assert explained[f"share_p{rank}_above_threshold"] == pytest.approx(sum(above) / len(above), abs=1e-6)
    reached = report["accuracies"].tolist()
    assert explained["best_accuracy"] == pytest.approx(max(reached), abs=1e-6)
    assert explained["best_epoch"] == reached.index(max(reached)) + 1
    rows = [row for row in read(pipeline.folder / "plots" / "training.csv") if row["network"] == "vgg16_bn_narrow"]
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert [float(row["test_accuracy"]) for row in rows] == pytest.approx(reached, rel=1e-5)
    assert [float(row["training_loss"]) for row in rows] == pytest.approx(report["losses"].tolist(), rel=1e-5)


def test_figures_3_and_4_name_the_classes_of_the_report(pipeline):
    """Every picture is found again among the test images, and with it its classes and its label."""
    with contextlib.chdir(pipeline.folder):
        samples = images.read("data/synthbirds", "test")
        pictures, labels = images.load(samples, range(len(samples)), images.preprocessing(32, False))
    report = np.load(pipeline.folder / "data" / "finetuned" / "reports" / "vgg16_bn_narrow.npz")["probabilities"]
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
        samples = images.read("data/synthbirds", "test")
        network = networks.load("data/networks/squeezenet1_1.pt")
        for image, group in rows.groupby("image"):
            x, _ = images.load(samples, [image], images.preprocessing(32, False))
            expected = network(x)[0].sort(descending=True).values
            assert group["rank"].tolist() == list(range(8))
            np.testing.assert_allclose(group["logit"], expected, rtol=1e-3, atol=1e-4)
    assert rows["image"].nunique() == 4


# --- the published settings' code paths, on four photographs and twenty-four birds ------------------------------

WNIDS = {"n01443537": 1, "n01514668": 7}
PAPER = (
    "profile=paper",
    "perturb.networks=[mobilenet_v3_small]",
    "perturb.image_size=64",
    "perturb.n_iterations=[1,2]",
    "gradient_norms.network=mobilenet_v3_small",
    "finetune.networks=[mobilenet_v3_small]",
    "finetune.image_size=64",
    "finetune.epochs=1",
    "finetune.batch_norm=frozen",
    "finetune.workers=2",
    "masking.layer=features.8",
    "vit.networks=[vit_mini]",
    "vit.image_size=32",
    "vit.training.weights=random",
    "vit.training.epochs=1",
    "vit.training.workers=0",
    "vit.blur_kernel=9",
    "weights.path=weights",
    "device=cpu",
    "threads=1",
)


@pytest.fixture(scope="module")
def paper(pipeline, tmp_path_factory):
    """The stages of the profile `paper`, run on ImageNet's layout, CUB's layout and a file of weights."""
    folder = tmp_path_factory.mktemp("paper") / "repo"
    repo = resolved(folder, composed(*PAPER, f"data.cub.path={pipeline.folder / 'data' / 'synthbirds'}"))
    shutil.copytree(ROOT / "data" / "reference", folder / "data" / "reference")
    birds = sorted((pipeline.folder / "data" / "synthbirds" / "images").glob("*/*"))[::7]
    for wnid, paths in zip(WNIDS, (birds[:2], birds[2:4])):
        (folder / "data" / "imagenet" / "val" / wnid).mkdir(parents=True)
        for path in paths:
            # Not square, so that the centre crop has something to cut.
            Image.open(path).resize((120, 90)).save(folder / "data" / "imagenet" / "val" / wnid / f"{path.stem}.JPEG")
    food = folder / "data" / "food-101"
    (food / "meta").mkdir(parents=True)
    photographs = sorted((pipeline.folder / "data" / "synthbirds" / "images").glob("*/*"))
    dishes = {"apple_pie": photographs[:4], "baby_back_ribs": photographs[-4:]}
    (food / "meta" / "classes.txt").write_text("\n".join(dishes))
    for split, part in (("train", slice(2)), ("test", slice(2, 4))):
        listed = {dish: [f"{dish}/{path.stem}" for path in paths[part]] for dish, paths in dishes.items()}
        (food / "meta" / f"{split}.json").write_text(json.dumps(listed))
    for dish, paths in dishes.items():
        (food / "images" / dish).mkdir(parents=True)
        for path in paths:
            Image.open(path).save(food / "images" / dish / f"{path.stem}.jpg")
    with runtime.seeded(1):
        state = torchvision.models.mobilenet_v3_small(weights=None).half().state_dict()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (folder / "weights").mkdir()
    name = f"mobilenet_v3_small-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    (folder / "weights" / name).write_bytes(buffer.getvalue())
    with contextlib.chdir(folder):
        for stage in in_order(repo):
            if stage.name not in ("synthbirds", "contact_sheet"):
                succeed(stage.cmd)
    return SimpleNamespace(folder=folder, state=state)


def test_food_without_parts_has_every_measure_but_localisation(paper):
    table = pd.read_csv(paper.folder / "plots" / "vit.csv")
    assert set(table["quantity"]) == {"alike", "between", "unmasked", "positive_kept", "negative_kept", "margin"}
    assert set(table.loc[table["p_2"] == "all", "n_images"]) == {4}


def test_published_weights_meet_imagenet_photographs_as_torchvision_prepares_them(paper):
    network = torchvision.models.mobilenet_v3_small(weights=None).eval()
    network.load_state_dict(paper.state)
    prepare = transforms.Compose([
        transforms.Resize(73), transforms.CenterCrop(64), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    paths = sorted((paper.folder / "data" / "imagenet").rglob("*.JPEG"))
    with torch.no_grad():
        expected = network(torch.stack([prepare(Image.open(path)) for path in paths])).softmax(1)
    report = np.load(paper.folder / "data" / "networks" / "reports" / "mobilenet_v3_small.npz")
    np.testing.assert_allclose(report["probabilities"], expected, rtol=2e-3, atol=1e-6)
    assert report["labels"].tolist() == [1, 1, 7, 7]


def test_published_settings_reach_every_table(paper):
    assert len(read(paper.folder / "plots" / "perturbation.csv")) == 5 * 2 * 2 * 3
    norms = pd.read_csv(paper.folder / "data" / "gradient_norms.csv")
    assert norms.groupby("image").size().tolist() == [145] * 4
    assert len(read(paper.folder / "plots" / "table1.csv")) == 3 * 2 * (1 + 3 * 2 * 3 * 2)
    claims = json.loads((paper.folder / "metrics" / "claims.json").read_text())
    assert claims["claim_1"]["n_images"] == 4
    assert claims["claim_1"]["holds"] is False  # four images are too few to judge


def test_frozen_batch_norm_keeps_the_statistics_of_the_weights_and_the_rest_learns(paper):
    trained = networks.load(paper.folder / "data" / "finetuned" / "mobilenet_v3_small.pt").inner.state_dict()
    for name, value in paper.state.items():
        if "running_" in name:
            assert torch.equal(trained[name], value.float()), name
    assert not torch.equal(trained["features.0.0.weight"], paper.state["features.0.0.weight"].float())
    assert trained["classifier.3.weight"].shape[0] == 8


# --- one side of the threshold may be empty ---------------------------------------------------------------------


def test_tables_without_an_image_below_the_threshold(here, tmp_path):
    succeed(here.commands["mask@vgg16_bn_narrow"], threshold=0.0, out=tmp_path / "cells" / "vgg16_bn_narrow.npz")
    paths = {name: tmp_path / name for name in ("table", "under_table", "by_ambiguity", "metrics")}
    succeed(here.commands["tables"], folder=tmp_path / "cells", **paths)
    assert len(read(paths["table"])) == 222
    assert len(read(paths["under_table"])) == 0
    assert json.loads(paths["metrics"].read_text())["n_images_below"] == 0


def test_claims_without_an_image_above_the_threshold_say_so(here, tmp_path):
    succeed(here.commands["mask@vgg16_bn_narrow"], threshold=0.99, out=tmp_path / "cells" / "vgg16_bn_narrow.npz")
    outs = {name: tmp_path / name for name in ("metrics", "table")}
    result = run(here.commands["claims"], masking_folder=tmp_path / "cells", **outs)
    assert_one_line(result, "no test image is above the threshold")
    assert not any(path.exists() for path in outs.values())


def test_localisation_without_an_image_above_the_threshold_has_empty_tables(here, tmp_path):
    cell = tmp_path / "cells" / "vgg16_bn_narrow.npz"
    succeed(here.commands["localise@vgg16_bn_narrow"], threshold=0.99, max_images_below=3, out=cell)
    paths = {name: tmp_path / name for name in ("table", "p_2_table", "metrics")}
    succeed(here.commands["localisation"], folder=tmp_path / "cells", **paths)
    assert len(read(paths["table"])) == 0
    assert json.loads(paths["metrics"].read_text())["n_images_below"] == 3
    drawn = {"table": paths["table"], "p_2_table": paths["p_2_table"], "out": tmp_path / "figure.png"}
    succeed(here.commands["figure_localisation"], **drawn)
    outs = {name: tmp_path / f"claims_{name}" for name in ("metrics", "table")}
    result = run(here.commands["claims"], localisation_folder=tmp_path / "cells", **outs)
    assert_one_line(result, "vgg16_bn_narrow", "no test image above the threshold")


def test_a_folder_without_attributes_is_measured_on_the_birds_parts(here, tmp_path):
    """Nothing then says what tells two classes apart: reported under another name, and not required of claim 2."""
    folder = tmp_path / "birds"
    shutil.copytree("data/synthbirds", folder)
    shutil.rmtree(folder / "attributes")
    shutil.rmtree(folder / "parts" / "masks")
    cells = tmp_path / "cells"
    succeed(here.commands["localise@vgg16_bn_narrow"], data=folder, out=cells / "vgg16_bn_narrow.npz")
    paths = {name: tmp_path / name for name in ("table", "p_2_table", "metrics")}
    succeed(here.commands["localisation"], folder=cells, **paths)
    assert {row["truth"] for row in read(paths["table"])} == {"the bird's parts"}
    assert json.loads(paths["metrics"].read_text())["discriminative"] is False
    outs = {"metrics": tmp_path / "claims.json", "table": tmp_path / "claims.csv"}
    succeed(here.commands["claims"], localisation_folder=cells, **outs)
    claim = json.loads(outs["metrics"].read_text())["claim_2"]
    assert "on_the_bird_weighted_minus_original" in claim["vgg16_bn_narrow"]
    assert "holds_localisation" not in claim
    assert claim["holds"] is claim["holds_table1"]


def test_localisation_refuses_a_report_of_other_images(here, tmp_path):
    runtime.write_arrays(tmp_path / "report.npz", probabilities=np.full((7, 8), 1 / 8))
    result = run(here.commands["localise@vgg16_bn_narrow"], report=tmp_path / "report.npz", out=tmp_path / "out.npz")
    assert_one_line(result, "report.npz is of 7 images", "has 24 test images")
    assert not (tmp_path / "out.npz").exists()


def test_figures_say_when_no_image_has_enough_classes(here, tmp_path):
    succeed(here.commands["maps_3"], threshold=0.99, out=tmp_path / "maps.npz")
    succeed(here.commands["figure_3"], maps=tmp_path / "maps.npz", out=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_constant_gradient_is_warned_of(here, tmp_path):
    """MobileNet pools behind its last convolution: its CAMs are one and the same map."""
    changes = {"network": "data/networks/mobilenet_v3_small.pt", "out": tmp_path / "cell.npz"}
    result = succeed(
        here.commands["mask@vgg16_bn_narrow"], **changes, report="data/networks/reports/mobilenet_v3_small.npz"
    )
    assert "warning: the gradient is constant" in result.stderr
    assert "warning" not in here.printed["mask@vgg16_bn_narrow"].stderr


def test_published_weights_are_taken_as_they_are(here, tmp_path):
    """No epochs: the network is tested and nothing else."""
    outs = {"out": tmp_path / "n.pt", "report": tmp_path / "r.npz", "curves": tmp_path / "curves"}
    succeed(here.commands["finetune@vgg16_bn_narrow"], epochs=0, **outs)
    with np.load(tmp_path / "r.npz") as report:
        assert len(report["losses"]) == len(report["accuracies"]) == 0
        assert report["probabilities"].shape == (24, 8)


def test_accuracy_without_any_training_has_no_curves(here, tmp_path):
    for name in ("perturbed", "finetuned"):
        network = "squeezenet1_1" if name == "perturbed" else "vgg16_bn_narrow"
        changes = {
            "epochs": 0,
            "network": network,
            "out": tmp_path / "n.pt",
            "curves": tmp_path / "curves",
            "report": tmp_path / name / f"{network}.npz",
        }
        succeed(here.commands["finetune@vgg16_bn_narrow"], **changes)
    folders = {"perturbed_folder": tmp_path / "perturbed", "finetuned_folder": tmp_path / "finetuned"}
    outs = {"metrics": tmp_path / "m.json", "curves": tmp_path / "c.csv"}
    succeed(here.commands["accuracy"], **folders, **outs, perturbed="squeezenet1_1", finetuned="vgg16_bn_narrow")
    assert pd.read_csv(outs["curves"]).empty
    metrics = json.loads(outs["metrics"].read_text())
    assert all("test_accuracy" in find(metrics, name) for name in ("squeezenet1_1", "vgg16_bn_narrow"))


def test_a_network_that_is_perturbed_and_explained_keeps_both_accuracies(here, tmp_path):
    """The two trainings are different: in the metrics and the curves neither may hide the other."""
    cell = tmp_path / "perturbed" / "vgg16_bn_narrow.npz"
    others = {"out": tmp_path / "n.pt", "curves": tmp_path / "curves"}
    succeed(here.commands["finetune@vgg16_bn_narrow"], epochs=1, report=cell, **others)
    outs = {"metrics": tmp_path / "m.json", "curves": tmp_path / "c.csv"}
    changes = {"perturbed_folder": tmp_path / "perturbed", "perturbed": "vgg16_bn_narrow"}
    succeed(here.commands["accuracy"], **changes, **outs)
    curves = pd.read_csv(outs["curves"])
    assert len(curves) == 1 + 2  # one epoch of the one, two of the other
    assert json.dumps(json.loads(outs["metrics"].read_text())).count('"test_accuracy"') == 2


# --- bad input --------------------------------------------------------------------------------------------------


def assert_one_line(result, *named):
    """Failed, with one line on stderr behind the progress bars, and without a traceback."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.strip() and "|" not in line and "it/s" not in line]
    lines = [line for line in lines if "batch" not in line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for text in named:
        assert str(text) in lines[0]


BAD = {
    "finetune@vgg16_bn_narrow": [
        ({"data": "data/nowhere"}, ["data/nowhere"]),
        ({"network": "resnet19"}, ["'resnet19'", "resnet18"]),
        ({"weights": "DEFAULT"}, ["vgg16_bn_narrow-<hash8>.pth"]),
        ({"weights": "data/none.pth"}, ["data/none.pth"]),
        ({"device": "abacus"}, ["'abacus'"]),
        ({"learning_rate": 1e20}, ["lower the learning rate"]),
    ],
    "perturb@squeezenet1_1": [
        ({"data": "data/reference"}, ["data/reference"]),
        ({"network": "data/networks/none.pt"}, ["data/networks/none.pt"]),
        ({"network": "data/reference/table1.csv"}, ["data/reference/table1.csv"]),
        ({"contrasts": "original,nonsense"}, ["'nonsense'", "weighted"]),
        ({"contrasts": "original,normalised"}, ["'normalised'", "no cotangent"]),
        ({"epsilons": "0.001,-0.5"}, ["-0.5"]),
        ({"epsilons": "nan"}, ["nan"]),
        ({"n_iterations": "0"}, ["0"]),
    ],
    "mask@vgg16_bn_narrow": [
        ({"layer": "features.99"}, ["'features.99'", "features.9"]),
        ({"explainers": "gradcam,nonsense"}, ["nonsense", "xgradcam"]),
        ({"explainers": "gradient"}, ["'gradient'", "xgradcam"]),
        ({"contrasts": "original,weighted,nonsense"}, ["'nonsense'", "normalised"]),
        ({"contrasts": "normalised,weighted"}, ["original with weighted", "normalised, weighted"]),
        ({"baselines": "nonsense"}, ["nonsense", "zeros"]),
        ({"rules": "nonsense"}, ["nonsense", "equal_kept"]),
        ({"blur_kernel": 8}, ["8"]),
        ({"report": "data/none.npz"}, ["data/none.npz"]),
        ({"report": "data/reference/table1.csv"}, ["data/reference/table1.csv", "damaged"]),
        ({"report": "data/masking/vgg16_bn_narrow.npz"}, ["vgg16_bn_narrow.npz", "'probabilities'"]),
    ],
    "localise@vgg16_bn_narrow": [
        ({"data": "data/reference"}, ["data/reference"]),
        ({"layer": "features.99"}, ["'features.99'", "features.9"]),
        ({"explainers": "gradcam,nonsense"}, ["nonsense", "xgradcam"]),
        ({"contrasts": "original,nonsense"}, ["'nonsense'", "weighted"]),
        ({"disc_radius": 0}, ["radius", "0"]),
        ({"report": "data/none.npz"}, ["data/none.npz"]),
    ],
    "localisation": [({"folder": "data/none"}, ["data/none"]), ({"p_2_edges": "0.01,0.1"}, ["[0.01, 0.1]"])],
    "figure_localisation": [({"table": "plots/none.csv"}, ["plots/none.csv"])],
    "maps_3": [({"contrasts": "nonsense"}, ["nonsense"]), ({"explainers": "nonsense"}, ["nonsense"])],
    "gradient_norms": [({"network": "data/none.pt"}, ["data/none.pt"])],
    "perturbation": [({"networks": "squeezenet1_1,mobilenet_v3_small,alexnet"}, ["alexnet.npz"])],
    "tables": [({"reference": "data/none.csv"}, ["data/none.csv"]), ({"folder": "data/none"}, ["data/none"])],
    "claims": [({"published_table": "data/none.csv"}, ["data/none.csv"])],
    "synthbirds": [({"species_per_family": 7}, ["species_per_family", "7"]), ({"ambiguity": 2}, ["ambiguity", "2"])],
    "contact_sheet": [({"data": "data/nowhere"}, ["data/nowhere"])],
    "figure_1_2": [({"table": "plots/none.csv"}, ["plots/none.csv"])],
    "figure_3": [
        ({"maps": "data/none.npz"}, ["data/none.npz"]),
        ({"maps": "data/reference/table1.csv"}, ["data/reference/table1.csv"]),
    ],
    "figure_6": [({"metrics": "metrics/none.json"}, ["metrics/none.json"])],
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
    ("name", "changes", "named"),
    [
        ("finetune@vgg16_bn_narrow", {"schedule": "nonsense"}, ["--schedule", "nonsense", "one_cycle"]),
        ("finetune@vgg16_bn_narrow", {"schedule": "resnet18=constant"}, ["--schedule", "vgg16_bn_narrow"]),
        ("finetune@vgg16_bn_narrow", {"clip": "0,vgg16_bn_narrow=-1"}, ["--clip", "-1"]),
        ("finetune@vgg16_bn_narrow", {"epochs": "many"}, ["--epochs", "many"]),
        ("finetune@vgg16_bn_narrow", {"epochs": "-1"}, ["--epochs", "-1"]),
        ("perturb@squeezenet1_1", {"batch_size": "0"}, ["--batch-size", "0"]),
        ("gradient_norms", {"threads": "0"}, ["--threads", "0"]),
        ("perturb@squeezenet1_1", {"epsilons": "0.001,small"}, ["--epsilons", "small"]),
        ("perturb@squeezenet1_1", {"epsilons": "params.yaml:perturb.nothing"}, ["--epsilons", "perturb.nothing"]),
        ("perturb@squeezenet1_1", {"epsilons": "params.yaml:seed"}, ["--epsilons"]),
        ("perturb@squeezenet1_1", {"epsilons": "params.yaml:seed.deeper"}, ["--epsilons", "seed.deeper"]),
        ("perturb@squeezenet1_1", {"epsilons": "nowhere.yaml:perturb.epsilons"}, ["--epsilons", "nowhere.yaml"]),
        ("perturb@squeezenet1_1", {"contrasts": "params.yaml:launch"}, ["--contrasts", "launch"]),  # no list: a text
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


def test_weights_for_other_classes_are_not_taken_as_they_are(here, paper, tmp_path):
    """Without training, a head of another size would be a random one."""
    outs = {"out": tmp_path / "n.pt", "report": tmp_path / "r.npz", "curves": tmp_path / "curves"}
    weights = {"network": "mobilenet_v3_small", "weights": "DEFAULT", "weights_path": paper.folder / "weights"}
    result = run(here.commands["finetune@vgg16_bn_narrow"], epochs=0, **weights, **outs)
    assert_one_line(result, "1000 classes", "has 8", "--epochs")
    assert list(tmp_path.iterdir()) == []


def test_several_ranks_are_refused_where_nothing_is_shared(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = contents(here.folder)
    assert_one_line(run(here.commands["maps_3"]), "WORLD_SIZE")
    assert contents(here.folder) == before


def test_script_itself_exits_with_one_line(tmp_path):
    script = [sys.executable, ROOT / "stages" / "figure_1_2.py"]
    done = subprocess.run(
        [*script, "--table", "none.csv", "--out", "plots/f.png"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert "none.csv" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
