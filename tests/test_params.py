"""Parameters, profiles, dvc.yaml and the scripts' options agree, so that none of them can drift from the others."""

import importlib.util
import re
import shlex
import shutil
import sys
from functools import cache
from pathlib import Path

import click
import networkx as nx
import pytest
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).parents[1]
PROFILES = ("mini", "sample", "paper")
LIST = re.compile(r"params\.yaml:(\S+)")
SETTINGS = {"seed": 0, "device": "auto", "threads": 2, "launch": "python"}


def load_module(path):
    """A script of the repository as a module, under a name that hides nothing."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def command(script):
    """The click command of `stages/NAME.py`."""
    if str(ROOT / "stages") not in sys.path:
        sys.path.append(str(ROOT / "stages"))
    return load_module(ROOT / script).main


def composed(*overrides):
    """The parameters that Hydra composes, as text."""
    return load_module(ROOT / "conf" / "compose.py").composed(*overrides)


def resolved(folder, params):
    """DVC's own reading of dvc.yaml under these parameters (YAML), in a folder that becomes a repository."""
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "params.yaml").write_text(params)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    return Repo(str(folder))


def arguments(cmd):
    """`(script, {option: value})` of a resolved command line."""
    _launcher, script, *words = shlex.split(cmd)
    assert words[::2] == [word for word in words if word.startswith("--")], cmd
    assert len(set(words[::2])) == len(words[::2]), cmd
    return script, dict(zip(words[::2], words[1::2], strict=True))


def at(params, key):
    for part in key.split("."):
        params = params[part]
    return params


@pytest.fixture(scope="module", params=PROFILES)
def profile(request, tmp_path_factory):
    """A profile's name, its parameters and DVC's stages under them."""
    text = composed(f"profile={request.param}")
    repo = resolved(tmp_path_factory.mktemp(request.param) / "repo", text)
    return request.param, yaml.safe_load(text), repo


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return resolved(tmp_path_factory.mktemp("graph") / "repo", composed("profile=mini"))


# --- parameters -------------------------------------------------------------------------------------------------


def test_committed_parameters_are_the_composed_default():
    assert (ROOT / "params.yaml").read_text() == composed() == composed("profile=mini"), "run `make params.yaml`"


@pytest.mark.parametrize("profile_name", PROFILES)
def test_profiles_have_the_same_keys(profile_name):
    """A profile that spells a key wrongly would add one and change nothing."""

    def keys(tree, prefix=""):
        for key, value in tree.items():
            yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]

    default = set(keys(yaml.safe_load(composed("profile=paper"))))
    assert set(keys(yaml.safe_load(composed(f"profile={profile_name}")))) == default


def test_paper_profile_is_the_published_setting():
    paper = yaml.safe_load(composed("profile=paper"))
    published = {
        "perturb.data": "data/imagenet",
        "perturb.image_size": 224,
        "perturb.crop": True,
        "perturb.epsilons": [0.001, 0.003],
        "perturb.n_iterations": [1, 2, 10],
        "perturb.max_images": 0,
        "perturb.training.weights": "DEFAULT",
        "perturb.training.epochs": 0,
        "gradient_norms.network": "vgg16",
        "gradient_norms.max_images": 1000,
        "finetune.networks": ["vgg16_bn"],
        "finetune.data": "data/CUB_200_2011",
        "finetune.weights": "DEFAULT",
        "finetune.image_size": 224,
        "finetune.crop": False,
        "finetune.epochs": 200,
        "finetune.batch_size": 128,
        "finetune.learning_rate": 1e-3,
        "finetune.momentum": 0.9,
        "finetune.weight_decay": 5e-4,
        "finetune.schedule": "constant",
        "finetune.clip": 0,
        "finetune.precision": "float32",
        "finetune.augmentation": "published",
        "finetune.batch_norm": "learned",
        "masking.layer": "auto",
        "masking.blur_kernel": 101,
        "masking.blur_sigma": 15,
        "masking.threshold": 0.1,
        "masking.max_images": 0,
        "masking.max_images_below": 0,
        "localisation.max_images": 0,
        "localisation.max_images_below": 0,
        "figure_3.network": "vgg16_bn",
        "figure_4.network": "vgg16_bn",
        "figure_5.network": "vit_b_16",
    } | SETTINGS
    assert {key: at(paper, key) for key in published} == published
    assert set(paper["perturb"]["networks"]) == {
        "resnet18", "alexnet", "googlenet", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "vgg16",
        "efficientnet_b1", "densenet161",
    }  # fmt: skip
    assert len(paper["perturb"]["networks"]) == 9
    assert set(paper["perturb"]["contrasts"]) >= {"original", "mean", "max", "weighted"}
    assert set(paper["masking"]["explainers"]) == {"gradcam", "linear_approximation", "xgradcam"}
    assert set(paper["masking"]["baselines"]) == {"gaussian_blur", "zeros", "channel_mean"}
    assert "published" in paper["masking"]["rules"]
    assert set(paper["localisation"]["explainers"]) == {*paper["masking"]["explainers"], "gradient"}
    assert set(paper["localisation"]["contrasts"]) >= {"original", "mean", "max", "weighted"}
    assert paper["masking"]["contrasts"][:2] == ["original", "weighted"]


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        ("data.imagenet.path=/photos", {"data.imagenet.path", "perturb.data"}),
        ("data.cub.path=/birds", {"data.cub.path", "finetune.data"}),
        ("weights.path=/weights", {"weights.path"}),
    ],
)
@pytest.mark.parametrize("profile_name", ["sample", "paper"])
def test_folders_are_overridden_at_one_place(profile_name, override, keys):
    plain, changed = (yaml.safe_load(composed(f"profile={profile_name}", *more)) for more in ((), (override,)))
    for key in keys:
        assert at(changed, key) == override.split("=")[1]
        assert at(plain, key) != at(changed, key)


# --- dvc.yaml and the profiles ----------------------------------------------------------------------------------


def test_every_profile_resolves(profile):
    name, params, repo = profile
    stages = {stage.name: stage for stage in repo.index.stages}
    for stage in stages.values():
        assert "${" not in stage.cmd
        assert "  " not in stage.cmd
        assert "None" not in stage.cmd
        arguments(stage.cmd)
    for group, key in (
        ("networks", "perturb"),
        ("perturb", "perturb"),
        ("finetune", "finetune"),
        ("mask", "finetune"),
        ("localise", "finetune"),
    ):
        cells = [stage for stage in stages if stage.startswith(f"{group}@")]
        assert cells == [f"{group}@{network}" for network in params[key]["networks"]], name
    assert nx.is_directed_acyclic_graph(repo.index.graph)


def test_options_parse_under_every_profile(profile, monkeypatch):
    """Click takes every value that the profile puts into a command line, lists too."""
    _, params, repo = profile
    monkeypatch.chdir(repo.root_dir)
    for stage in repo.index.stages:
        script, options = arguments(stage.cmd)
        words = [word for pair in options.items() for word in pair]
        context = command(script).make_context(script, words)
        for option, value in options.items():
            if found := LIST.fullmatch(value):
                parsed = context.params[option.removeprefix("--").replace("-", "_")]
                assert parsed == at(params, found[1])
                assert len(parsed) > 0


@pytest.mark.parametrize("name", ["mini", "sample"])
def test_other_networks_need_no_second_override(name):
    params = yaml.safe_load(composed(f"profile={name}", "perturb.networks=[alexnet]", "finetune.networks=[vgg11]"))
    assert params["gradient_norms"]["network"] == "alexnet"
    assert params["figure_3"]["network"] == params["figure_4"]["network"] == "vgg11"


def test_figures_show_networks_that_the_profile_trains(profile):
    _, params, repo = profile
    outs = {out.def_path for stage in repo.index.stages for out in stage.outs}
    assert params["gradient_norms"]["network"] in params["perturb"]["networks"]
    for figure in ("figure_3", "figure_4"):
        assert params[figure]["network"] in params["finetune"]["networks"]
    own = (
        "data/networks",
        "data/finetuned",
        "data/perturbation",
        "data/masking",
        "data/localisation",
        "data/maps",
        "plots",
        "metrics",
    )
    for stage in repo.index.stages:
        for dep in stage.deps:
            if dep.def_path.startswith(own):
                assert any(out == dep.def_path or out.startswith(f"{dep.def_path}/") for out in outs), dep.def_path


# --- dvc.yaml and the scripts -----------------------------------------------------------------------------------


def definitions():
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", definitions())
def test_command_line_gives_every_option_of_its_script_and_no_other(name):
    # ${item.network} holds no space, so the templates split as the resolved command lines do.
    script, options = arguments(definitions()[name]["cmd"])
    known = {opt for parameter in command(script).params for opt in parameter.opts}
    assert set(options) == known


@pytest.mark.parametrize("name", definitions())
def test_lists_of_a_command_line_are_declared_as_parameters(name):
    definition = definitions()[name]
    assert sorted(LIST.findall(definition["cmd"])) == sorted(definition.get("params", []))


def test_every_script_has_a_stage_and_every_option_is_required():
    by_hand = {"stages/verify.py", "stages/fetch.py"}
    scripts = {f"stages/{path.name}" for path in (ROOT / "stages").glob("[!_]*.py")} - by_hand
    assert scripts == {arguments(definition["cmd"])[0] for definition in definitions().values()}
    for script in scripts:
        for parameter in command(script).params:
            assert isinstance(parameter, click.Option)
            assert parameter.required, f"{script} {parameter.name}"


@pytest.mark.parametrize("name", definitions())
def test_files_a_command_line_reads_and_writes_are_declared(name):
    """What looks like a path in the repository stands among the stage's deps, outs, metrics and plots."""
    definition = definitions()[name]
    _, options = arguments(definition["cmd"])
    kinds = ("outs", "metrics", "plots")
    outs = {next(iter(o)) if isinstance(o, dict) else o for kind in kinds for o in definition.get(kind, [])}
    written = {option: value for option, value in options.items() if value in outs}
    assert set(written.values()) == outs
    paths = {value for value in options.values() if value.startswith(("data/", "plots/", "metrics/"))}
    paths |= {value for value in options.values() if re.fullmatch(r"\$\{\w+\.(data|path)\}", value)}
    assert paths - outs <= set(definition["deps"])


@pytest.mark.parametrize(
    ("values", "network", "expected"),
    [("a", "n", "a"), ("a,n=b", "n", "b"), ("a,n=b", "m", "a"), ("n=b,a", "m", "a"), ("n=b,m=c", "m", "c")],
)
def test_a_networks_own_value_comes_before_that_of_all_others(values, network, expected):
    assert load_module(ROOT / "stages" / "_command.py").for_network(values, network) == expected


@pytest.mark.parametrize("values", ["a,b", "m=a", "n=a,n=b", "a,m=b,c"])
def test_no_value_or_two_for_one_network_is_an_error(values):
    with pytest.raises(ValueError, match=r"is not one value for n: write VALUE"):
        load_module(ROOT / "stages" / "_command.py").for_network(values, "n")


# --- what a change runs again -----------------------------------------------------------------------------------


def stages_behind(repo, changed):
    """Names of the stages that `changed` picks, and of all that depend on them."""
    graph = repo.index.graph.reverse()  # DVC's edges point from a stage to what it needs
    picked = [stage for stage in graph if changed(stage)]
    assert picked
    return {name.name for stage in picked for name in (stage, *nx.descendants(graph, stage))}


def needs(key):
    """Whether a change of a parameter changes a stage's command line or declared parameters."""
    return lambda stage: any(key in getattr(dep, "params", []) for dep in stage.deps)


def groups(names):
    return {name.partition("@")[0] for name in names}


def test_graph_lets_epsilons_reach_only_the_perturbation(mini):
    behind = stages_behind(mini, needs("perturb.epsilons"))
    assert groups(behind) == {"perturb", "perturbation", "figure_1_2", "figure_published", "claims"}


def test_graph_lets_explainers_reach_only_the_masks(mini):
    behind = stages_behind(mini, needs("masking.explainers"))
    assert groups(behind) == {"mask", "tables", "table_figures", "claims"}


LOCALISED = {"localise", "localisation", "figure_localisation"}
MAPPED = {"maps_3", "maps_4", "figure_3", "figure_4"}
COMPARED = {"vit", "vit_table", "figure_vit"}
EXPLAINED = {"accuracy", "mask", "tables", "table_figures", "claims", *MAPPED, *LOCALISED}


# Interpolated parameters change a command line: the same question, answered by resolving twice.
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("masking.threshold=0.2", {*EXPLAINED, *COMPARED}),
        ("figure_3.max_images=5", {"maps_3", "figure_3"}),
        ("localisation.disc_radius=0.2", {*LOCALISED, *COMPARED, "claims"}),
        ("vit.rollout_block=1", {*COMPARED, "maps_5", "figure_5"}),
        ("vit.training.epochs=3", {"transformers", *COMPARED, "maps_5", "figure_5"}),
        ("gradient_norms.max_images=5", {"gradient_norms", "figure_6"}),
        ("perturb.max_images=5", {"perturb", "perturbation", "figure_1_2", "figure_published", "claims"}),
        ("saturation.n_iterations=3", {"saturate", "saturation", "figure_saturation"}),
        ("finetune.epochs=3", {"finetune", *EXPLAINED}),
    ],
)
def test_a_parameter_runs_again_only_what_depends_on_it(mini, tmp_path, override, expected):
    before = {stage.name: stage.cmd for stage in mini.index.stages}
    repo = resolved(tmp_path / "repo", composed("profile=mini", override))
    assert groups(stages_behind(repo, lambda stage: stage.cmd != before[stage.name])) == expected


def test_another_network_leaves_the_cells_of_the_others_alone(mini, tmp_path):
    before = {stage.name: stage.cmd for stage in mini.index.stages}
    repo = resolved(tmp_path / "repo", composed("profile=mini", "perturb.networks=[resnet18,googlenet,alexnet]"))
    after = {stage.name: stage.cmd for stage in repo.index.stages}
    assert after.keys() - before.keys() == {f"{stage}@alexnet" for stage in ("networks", "perturb", "saturate")}
    assert before.keys() - after.keys() == {
        f"{stage}@mobilenet_v3_small" for stage in ("networks", "perturb", "saturate")
    }
    assert all(after[name] == before[name] for name in after.keys() & before.keys())


@pytest.mark.parametrize(
    "file",
    [
        "cxlib/review/report/figures.py",
        "cxlib/review/report/tables.py",
        "cxlib/review/report/claims.py",
        "cxlib/metrics/masking.py",
        "cxlib/metrics/localisation.py",
    ],
)
def test_editing_figures_tables_or_verdicts_trains_nothing(mini, file):
    behind = groups(stages_behind(mini, lambda stage: file in {dep.def_path for dep in stage.deps}))
    trained = {stage.name for stage in mini.index.stages if "stages/finetune.py" in stage.cmd}
    assert len(trained) == 5
    assert not behind & (groups(trained) | {"synthbirds"})


def test_no_output_is_also_kept_out_of_the_run_cache(mini):
    """A plain output without cache, or a persistent one, silently loses DVC's run cache."""
    for stage in mini.index.stages:
        for out in stage.outs:
            assert not out.persist
            assert out.use_cache or out.is_metric or out.is_plot, out.def_path
