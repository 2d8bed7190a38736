"""The repository's DVC plot templates, drawn from small tables by DVC and Vega-Lite."""

import csv
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import vl_convert
import yaml
from dvc_render import vega_templates

TEMPLATES = Path(__file__).parents[1] / ".dvc" / "plots"
DVCS_OWN = {template.DEFAULT_NAME for template in vega_templates.TEMPLATES}
PERTURBATION = {
    "network": ["resnet18", "vgg16"],
    "epsilon": [0.001, 0.003],
    "n_iterations": [1, 10],
    "contrast": ["original", "mean", "max", "weighted", "probability"],
    "quantity": ["accuracy", "p_t", "y_t"],
    "n_images": [100],
}
TABLE1 = {
    "network": ["vgg16"],
    "explainer": ["gradcam", "xgradcam"],
    "target": ["t1", "t2"],
    "baseline": ["blur"],
    "kept_features": ["positive", "negative"],
    "contrast": ["original", "weighted"],
    "rule": ["published", "equal_kept", "unequal"],
    "n_images": [100],
    "low": [0.4],
    "high": [0.6],
    "published": ["", 0.3],
}
BY_AMBIGUITY = {
    "network": ["vgg16"],
    "p_2": ["> 0.1", "0.01–0.1", "< 0.001"],
    "target": ["t1", "t2"],
    "baseline": ["all"],
    "kept_features": ["positive", "negative"],
    "contrast": ["original", "weighted", "normalised"],
    "rule": ["published", "equal_kept"],
    "n_images": [100],
    "low": [0.4],
    "high": [0.6],
}
CLAIMS = {
    "statement": ["claim_1"],
    "network": ["all networks", "resnet18", "vgg16"],
    "margin": ["p_t_weighted_minus_original", "y_t_original_minus_weighted"],
    "kind": ["comparison"],
    "low": [-0.1],
    "high": [0.6],
    "bound": [0],
    "published": ["", 0.3],
    "n_images": [100],
    "verdict": ["holds"],
}
TRAINING = {"network": ["resnet18", "vgg16", "vit_mini"], "epoch": [1, 2, 3], "training_loss": [0.7]}
ZEROS = {
    "network": ["resnet18", "vgg16"],
    "epsilon": [0.001, 0.003],
    "n_iterations": [1, 10],
    "contrast": ["max", "mean"],
}
LOCALISATION = {
    "network": ["resnet18", "vgg16"],
    "explainer": ["gradcam", "xgradcam"],
    "contrast": ["original", "weighted"],
    "target": ["mean"],
    "mass": ["evidence"],
    "quantity": ["gain", "hit"],
    "low": [0.1],
    "high": [0.6],
    "n_images": [100],
}
BY_P_2 = {
    "network": ["vgg16"],
    "p_2": ["> 0.1", "0.01–0.1", "< 0.01"],
    "explainer": ["mean"],
    "contrast": ["original", "max", "weighted"],
    "quantity": ["gain", "hit"],
    "low": [0.1],
    "high": [0.6],
    "n_images": [100],
}
REPAINTED = {
    "network": ["vgg16"],
    "repainted": ["as_sibling", "shared"],
    "dose": [0.1, 1],
    "quantity": ["effect", "flips"],
    "low": [0.1],
    "high": [0.6],
    "n_images": [100],
}
INTERVENED = {
    "network": ["vgg16"],
    "explainer": ["gradcam", "lrp"],
    "contrast": ["original", "weighted", "perfect"],
    "quantity": ["rank", "found"],
    "low": [0.1],
    "high": [0.6],
    "n_images": [100],
}
DOSES = {
    "network": ["vgg16"],
    "contrast": ["max", "weighted"],
    "epsilon": [0.001, 0.003],
    "n_iterations": [1, 10],
    "quantity": ["accuracy", "p_t"],
    "low": [0.1],
    "high": [0.6],
    "n_images": [100],
}
VARIANTS = {
    "network": ["vit_b_16"],
    "explainer": ["vit_gradcam", "attention_rollout"],
    "p_2": ["> 0.1", "< 0.001"],
    "quantity": ["between", "gain"],
    "variant": ["standard", "without_relu", "contrastive"],
    "target": ["shown"],
    "rule": ["none"],
    "low": [0.1],
    "high": [0.6],
    "n_images": [100],
}
LEADERBOARD = {
    "network": ["vgg16"],
    "explainer": ["gradcam", "lrp"],
    "contrast": ["original", "weighted"],
    "measure": ["repainting", "insertion_deletion", "passes"],
    "low": [0.1],
    "high": [0.6],
    "n_images": [100],
}
BY_BLOCK = {"block" if axis == "p_2" else axis: values for axis, values in (VARIANTS | {"p_2": [0, 1, 2]}).items()}
# For each table: the values of its columns (every combination is a row), the column of numbers, x, y and the template.
TABLES = {
    "plots/perturbation.csv": (PERTURBATION, "change", "network", "change", "grouped_bar"),
    "plots/table1.csv": (TABLE1, "relative_probability", "explainer", "relative_probability", "table1"),
    "plots/by_ambiguity.csv": (BY_AMBIGUITY, "relative_probability", "p_2", "relative_probability", "table1"),
    "plots/claims.csv": (CLAIMS, "mean", "mean", "margin", "margins"),
    "plots/training.csv": (TRAINING, "test_accuracy", "epoch", "test_accuracy", "lines"),
    "plots/zero_gradients.csv": (ZEROS, "zero_share", "n_iterations", "zero_share", "lines"),
    "plots/localisation.csv": (LOCALISATION, "value", "explainer", "value", "intervals"),
    "plots/localisation_by_p_2.csv": (BY_P_2, "value", "p_2", "value", "intervals"),
    "plots/repainting.csv": (REPAINTED, "value", "dose", "value", "intervals"),
    "plots/intervention.csv": (INTERVENED, "value", "explainer", "value", "intervals"),
    "plots/doses.csv": (DOSES, "margin", "epsilon", "margin", "intervals"),
    "plots/perturbation_vs_published.csv": (
        PERTURBATION | {"published": [0.3]},
        "change",
        "published",
        "change",
        "against",
    ),
    "plots/leaderboard.csv": (LEADERBOARD, "value", "explainer", "value", "leaderboard"),
    "plots/vit.csv": (VARIANTS, "value", "p_2", "value", "variants"),
    "plots/vit_blocks.csv": (BY_BLOCK, "value", "block", "value", "variants"),
}
BARS = ("grouped_bar",)
#: As many rows as the default run has, and some more.
LARGE = {
    "plots/table1.csv": TABLE1
    | {
        "network": ["resnet18", "vgg16", "vgg16_bn", "vgg19"],
        "explainer": ["gradcam", "xgradcam", "linear_approximation", "fullgrad"],
        "baseline": ["gaussian_blur", "zeros", "channel_mean"],
    },
    "plots/claims.csv": CLAIMS
    | {
        "network": ["all networks", *(f"network {number}" for number in range(6))],
        "margin": [f"t{number}_positive_kept" for number in range(70)],
    },
    "plots/leaderboard.csv": LEADERBOARD
    | {
        "explainer": [f"explainer {number}" for number in range(10)],
        "measure": [f"measure_{number}" for number in range(10)],
    },
    "plots/vit.csv": VARIANTS | {"quantity": ["alike", "between", "coherence", "gain", "hit", "positive_kept"]},
}


def run(*command: str, cwd: Path) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_tables(repository: Path, value: float) -> None:
    for name, (columns, numbers, *_) in TABLES.items():
        with (repository / name).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*columns, numbers])
            writer.writerows([*row, value] for row in itertools.product(*columns.values()))


def with_rows(chart: dict, rows: list[dict]) -> dict:
    """The chart of other rows, of one revision."""
    return chart | {"data": {"values": [{"rev": "workspace", **row} for row in rows]}}


def choices(chart: dict) -> list[dict]:
    """The chart at every choice that a reader has."""
    options = [
        [param | {"value": option} for option in param["bind"]["options"]] if "bind" in param else [param]
        for param in chart.get("params", [])
    ]
    return [chart | {"params": list(chosen)} for chosen in itertools.product(*options)]


@pytest.fixture(scope="module")
def charts(tmp_path_factory):
    """What `dvc plots show` and `dvc plots diff HEAD` hand to Vega-Lite: {(command, table): specification}."""
    repository = tmp_path_factory.mktemp("plots")
    run("git", "init", "-q", cwd=repository)
    shutil.copytree(TEMPLATES, repository / ".dvc" / "plots")
    (repository / ".dvc" / "config").touch()  # as good as `dvc init`, and fast
    (repository / "plots").mkdir()
    plots = [{name: {"x": x, "y": y, "template": template}} for name, (*_, x, y, template) in TABLES.items()]
    (repository / "dvc.yaml").write_text(json.dumps({"plots": plots}))
    write_tables(repository, 0.5)
    run("git", "add", ".", cwd=repository)
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one", cwd=repository)
    write_tables(repository, 0.25)
    found = {}
    for command in (["show"], ["diff", "HEAD"]):
        answer = json.loads(run(sys.executable, "-m", "dvc", "plots", *command, "--json", cwd=repository))
        assert not answer.get("errors")
        for name, (entry,) in answer["data"].items():
            content = entry["content"]
            found[command[0], name] = json.loads(content) if isinstance(content, str) else content
    return found


def n_rows(name):
    return math.prod(map(len, TABLES[name][0].values()))


def counts(chart, role):
    """Marks of a chart, at each of its choices."""
    return [vl_convert.vegalite_to_svg(each).count(f'aria-roledescription="{role}"') for each in choices(chart)]


def n_marks(chart, name):
    return sum(counts(chart, "bar" if TABLES[name][-1] in BARS else "point"))


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_one_mark_at_one_of_the_choices(charts, name):
    assert n_marks(charts["show", name], name) == n_rows(name)


@pytest.mark.parametrize("name", TABLES)
def test_diff_draws_both_revisions(charts, name):
    chart = charts["diff", name]
    assert {row["rev"] for row in chart["data"]["values"]} == {"workspace", "HEAD"}
    assert n_marks(chart, name) == 2 * n_rows(name)


@pytest.mark.parametrize(("name", "n_lines"), [("plots/training.csv", 3), ("plots/zero_gradients.csv", 8)])
def test_every_network_has_lines_of_its_own(charts, name, n_lines):
    assert vl_convert.vegalite_to_svg(charts["show", name]).count('aria-roledescription="line mark"') == n_lines


@pytest.mark.parametrize("name", ["plots/claims.csv", "plots/table1.csv"])
def test_numbers_have_an_interval_and_the_published_number(charts, name):
    chart, n = charts["show", name], n_rows(name)
    assert sum(counts(chart, "rule mark")) == n
    assert sum(counts(chart, "tick")) == n // 2


def test_what_is_not_masked_is_a_line_across_the_features_of_its_class(charts):
    masked = {"network": "vgg16", "explainer": "gradcam", "target": "t1", "baseline": "zeros", "rule": "published"}
    masked |= {"kept_features": "positive", "contrast": "max", "relative_probability": 0.5, "low": 0.4, "high": 0.6}
    plain = masked | {"kept_features": "all", "baseline": "none", "rule": "none", "contrast": "none"}
    chart = with_rows(charts["show", "plots/table1.csv"], [plain, masked])
    # By the rules published, equal_kept and unequal: two lines, and the one interval.
    assert counts(chart, "rule mark") == [2 + 1, 2, 2]


def test_where_differences_count_as_none_is_a_band_on_the_scale_of_its_row(charts):
    row = {"statement": "3.2_equal", "network": "vgg16", "margin": "unequal_minus_published", "verdict": "holds"}
    row |= {"kind": "equivalence", "mean": 0.002, "low": -0.01, "high": 0.03, "bound": 0.02, "published": ""}
    chart = with_rows(charts["show", "plots/claims.csv"], [row, row | {"margin": "other", "kind": "comparison"}])
    bands = re.findall(r'd="M[^"h]*h([0-9.]+)v[^"]*" fill="#e6e6e6"', vl_convert.vegalite_to_svg(chart))
    width = chart["width"] / 2  # from 0 to the row's largest number
    assert [float(band) for band in bands] == pytest.approx([2 * width * 0.02 / 0.03, 0])


@pytest.mark.parametrize("name", LARGE)
def test_a_reader_takes_it_in_on_one_screen(charts, name):
    columns, number = LARGE[name], TABLES[name][1]
    rows = [dict(zip([*columns, number], [*row, 0.5])) for row in itertools.product(*columns.values())]
    chart = with_rows(charts["show", name], rows)
    width, height = re.search(r'<svg[^>]* viewBox="0 0 (\S+) (\S+)"', vl_convert.vegalite_to_svg(chart)).groups()
    assert float(width) <= 1300
    assert float(height) <= 1000


@pytest.mark.parametrize("name", TABLES)
def test_chart_is_a_picture_without_a_network(charts, name):
    chart = charts["diff", name]
    assert "DVC_METRIC" not in json.dumps(chart)
    png = vl_convert.vegalite_to_png(chart, allowed_base_urls=[])
    assert png.startswith(b"\x89PNG")
    assert len(png) > 20_000


def plots_of_pipeline():
    """`{file, or title: how it is drawn}` of dvc.yaml's stages and of its own `plots`."""
    pipeline = yaml.safe_load((TEMPLATES.parents[1] / "dvc.yaml").read_text())
    stages = [stage.get("do", stage) for stage in pipeline["stages"].values()]
    entries = [entry for part in (*stages, pipeline) for entry in part.get("plots", [])]
    return {name: plot or {} for entry in entries for name, plot in entry.items()}


def test_every_table_of_the_pipeline_is_drawn_as_tested():
    tables = {name: plot for name, plot in plots_of_pipeline().items() if name.startswith("plots/") and ".csv" in name}
    # Without a template DVC draws the last column as a curve, whatever it holds.
    assert [name for name, plot in tables.items() if not {"template", "x", "y"} <= plot.keys()] == []
    drawn = {name: (plot["x"], plot["y"], plot["template"]) for name, plot in tables.items()}
    assert drawn.pop("plots/under_threshold.csv") == drawn["plots/table1.csv"]
    ours = {name: how for name, how in drawn.items() if how[-1] not in DVCS_OWN}
    assert ours == {name: tuple(how) for name, (_, _, *how) in TABLES.items()}


def test_every_template_of_the_pipeline_exists():
    named = {plot["template"] for plot in plots_of_pipeline().values() if "template" in plot}
    assert named <= {path.stem for path in TEMPLATES.glob("*.json")} | DVCS_OWN


def test_every_template_is_tested():
    assert {path.stem for path in TEMPLATES.glob("*.json")} == {template for *_, template in TABLES.values()}
