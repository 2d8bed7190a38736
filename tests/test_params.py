"""Parameters, profiles, dvc.yaml and the scripts' options agree, so that none of them can drift from the others."""

import importlib.util
import re
import shlex
import shutil
import socket
import sys
import tomllib
from dataclasses import fields
from fnmatch import fnmatch
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import networkx as nx
import pytest
import torchvision
import yaml
from click.core import ParameterSource
from dvc.dependency.param import MissingParamsError, ParamsDependency
from dvc.repo import Repo
from omegaconf.errors import OmegaConfBaseException

from cxlib import fetch, networks, runtime
from cxlib.networks.build import HYBRIDS
from cxlib.networks.weights import PACKAGES
from cxlib.review.report import page

ROOT = Path(__file__).parents[1]
PROFILES = ("mini", "tiny", "sample", "paper")
#: Below these keys a profile has what it likes: its data sets and networks.
LISTS = (
    *("perturb.networks", "mask.networks", "control.networks", "localise.networks", "judge.networks"),
    *("relate.networks", "vit.networks", "explore.networks"),
)
OWN = ("data", "networks", *LISTS, "intervene.networks", "vit_maps", "sheets")
#: Run by hand.
BY_HAND = {"stages/repro.py", "stages/verify.py", "stages/estimate.py", "stages/compare.py"}
#: Folders of files whose hash is in a parameter: that is the dependency, and what else lies there is none.
HASHED = {"archives", "weights_path"}
MACHINE = {field.name for field in fields(runtime.Machine)}
INTERPOLATION = re.compile(r"\$\{([\w.]+)\}")


def load_module(path):
    """A script of the repository as a module, under a name that hides nothing."""
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def command(script):
    """The click command, or group of commands, of `stages/NAME.py`."""
    if str(ROOT / "stages") not in sys.path:
        sys.path.append(str(ROOT / "stages"))
    return load_module(ROOT / script).main


def composed(*overrides):
    """The parameters that Hydra composes, as text."""
    return load_module(ROOT / "conf" / "compose.py").composed(*overrides)


def resolved(folder, params):
    """DVC's own reading of dvc.yaml under these parameters (YAML), in a folder that becomes a repository."""
    (folder / ".dvc").mkdir(parents=True)
    # The committed configuration says how a dictionary unpacks into a command.
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    (folder / "params.yaml").write_text(params)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    return Repo(str(folder))


def arguments(cmd):
    """`(script, words)` of a resolved command line."""
    python, script, *words = shlex.split(cmd)
    assert python == "python", cmd
    return script, words


def parsed(cmd):
    """`(command, {parameter: value})`: what click makes of a resolved command line; a subcommand is no parameter."""
    script, words = arguments(cmd)
    main = command(script)
    if isinstance(main, click.Group):
        main = main.commands[words.pop(0)]
    context = main.make_context(script, words)
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    assert given == {parameter.name for parameter in main.params}, cmd
    return main, context.params


def commands_of(script):
    """The click command of a script, or all those of its group."""
    main = command(script)
    return list(main.commands.values()) if isinstance(main, click.Group) else [main]


def at(params, key):
    for part in key.split("."):
        params = params[part]
    return params


def leaves(tree, prefix=""):
    """`{dotted key: value}` of all that is no dictionary."""
    found = {}
    for key, value in tree.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@cache
def parameters(*overrides):
    return yaml.safe_load(composed(*overrides))


@pytest.fixture(scope="module", params=PROFILES)
def profile(request, tmp_path_factory):
    """A profile's parameters and DVC's stages under them."""
    text = composed(f"profile={request.param}")
    return yaml.safe_load(text), resolved(tmp_path_factory.mktemp(request.param) / "repo", text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return resolved(tmp_path_factory.mktemp("graph") / "repo", composed("profile=tiny"))


# --- parameters -------------------------------------------------------------------------------------------------


def test_committed_parameters_are_the_composed_default():
    assert (ROOT / "params.yaml").read_text() == composed() == composed("profile=mini"), "run `make params.yaml`"


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_have_the_same_keys(name):
    """A profile that spells a key wrongly would add one and change nothing."""

    def keys(params):
        return {key for key in leaves(params) if not key.startswith(tuple(f"{own}." for own in OWN))} - set(OWN)

    params = parameters(f"profile={name}")
    assert keys(params) == keys(parameters("profile=paper"))
    assert all(isinstance(at(params, own), dict) for own in OWN)


@pytest.mark.parametrize("own", ["data", "networks", "vit_maps", "sheets"])
def test_data_sets_and_networks_have_nothing_that_no_stage_reads(own):
    families = [stage["do"]["cmd"] for stage in stages_of_dvc_yaml().values() if f"{own}}}" in stage.get("foreach", "")]
    read = {key for cmd in families for key in INTERPOLATION.findall(cmd)}
    for name in PROFILES:
        for key in leaves(parameters(f"profile={name}")[own]):
            item = f"item.{key.partition('.')[2]}"
            assert any(f"{item}.".startswith(f"{other}.") for other in read), key


@pytest.mark.parametrize("name", PROFILES)
def test_experiments_list_networks_as_they_are(name):
    params = parameters(f"profile={name}")
    for key in LISTS:
        listed = at(params, key)
        assert listed, key
        for network, entry in listed.items():
            images, explanation = (params["networks"][network].get(kind) for kind in ("images", "explanation"))
            of_a_layer = key.startswith(("mask.", "control.", "localise.", "judge.", "relate.", "explore."))
            known = {"images": images, "explanation": explanation} if of_a_layer else images
            assert entry | known == entry
            # What an entry says of its own comes before an option of all.
            assert set(entry) - set(known) <= set(at(params, key.replace(".networks", ".options")))


LITE0 = "efficientnet-lite0-57934424"


def test_default_profile_is_one_set_of_weights_in_four_roles():
    mini = parameters()
    roles = {
        "lite0_birds": ("tf_efficientnet_lite0", "probe", "data/sets/synthbirds"),
        "lite0": ("tf_efficientnet_lite0", "as_it_came", "data/sets/synthbirds"),
        "lite0_photographs": ("tf_efficientnet_lite0", "as_it_came", "data/sets/photographs"),
        "vit_lite0": ("vit_lite0", "fine_tune", "data/sets/synthbirds"),
    }
    for name, entry in mini["networks"].items():
        network = entry["network"]
        assert (network["architecture"], entry["training"]["method"], entry["images"]["data"]) == roles.pop(name)
        assert network["weights"] == LITE0
        assert ("explanation" in entry) == (name != "vit_lite0")
    assert roles == {}
    labels = {name: at(mini, f"networks.{name}.training.options.labels") for name in ("lite0", "lite0_photographs")}
    assert labels == {"lite0": False, "lite0_photographs": True}  # painted birds are none of ImageNet's classes
    assert mini["networks"]["vit_lite0"]["training"]["options"]["frozen"] == "patch_embed.backbone"


def test_default_profile_asks_each_network_what_it_can_answer():
    """Labels for perturbations, which start from them; parts for localisation, which only the species have."""
    mini = parameters()
    assert {key: list(at(mini, key)) for key in LISTS} == {
        "perturb.networks": ["lite0_birds"],
        "mask.networks": ["lite0_birds", "lite0", "lite0_photographs"],
        "control.networks": ["lite0_birds", "lite0"],
        "localise.networks": ["lite0_birds"],
        "judge.networks": ["lite0_birds"],
        "relate.networks": ["lite0_birds", "lite0", "lite0_photographs"],
        "vit.networks": ["vit_lite0"],
        "explore.networks": ["lite0_birds"],
    }
    assert mini["gradient_norms"]["network"] == mini["maps"]["figure_3"]["network"] == "lite0_birds"
    assert mini["vit_maps"]["figure_5"]["network"] == "vit_lite0"


def test_default_profile_downloads_nothing(monkeypatch, tmp_path):
    """Its data sets are painted or a package's, its weights a package's, and the packages are the pipeline's own."""
    mini = parameters()

    def refuse(*_args, **_more):
        raise AssertionError("asked for a host")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert set(mini["data"]) == {"synthbirds", "photographs"}
    assert mini["data"]["photographs"] == {"path": "data/sets/photographs"}
    assert not [key for key in leaves(mini["data"]) if re.search(r"\.(url|archives|\w*md5)$", key)]
    assert fetch.foolbox_photographs(tmp_path / "photographs") == 20
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"]["review"]}
    assert "foolbox" in required
    for name, entry in mini["networks"].items():
        architecture, weights = entry["network"]["architecture"], entry["network"]["weights"]
        package = PACKAGES[HYBRIDS[architecture][0] if architecture in HYBRIDS else architecture]
        assert package in required, name
        assert f"{weights}.pth" in {file.name for file in runtime.packaged(package)}
        assert networks.build(architecture, weights, folder=tmp_path).name == architecture


#: What every command of `stages/train.py` is told beside its recipe.
TOLD = {"architecture", "weights", "weights_path", "data", "image_size", "crop", "out", "report", "curves"}


def test_every_network_has_a_method_of_training_and_exactly_its_options():
    methods = command("stages/train.py").commands
    own = {name: {parameter.name for parameter in method.params} - TOLD for name, method in methods.items()}
    assert all({parameter.name for parameter in method.params} >= TOLD for method in methods.values())
    used = set()
    for name in PROFILES:
        for network, entry in parameters(f"profile={name}")["networks"].items():
            training = entry["training"]
            assert set(training) == {"method", "options"}, network
            assert set(training["options"]) == own[training["method"]], network
            used.add(training["method"])
    assert used == set(methods) == {"as_it_came", "probe", "fine_tune"}


def test_every_recipe_is_some_networks():
    recipes = {path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml")}
    lines = [path.read_text() for folder in ("networks", "recipe") for path in (ROOT / "conf" / folder).glob("*.yaml")]
    named = {name for text in lines for name in re.findall(r"^  - (?:/recipe@\w+\.training: )?(\w+)$", text, re.M)}
    assert named - {"_self_"} == recipes


IMAGENET = (
    "resnet18", "alexnet", "googlenet", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "vgg16",
    "efficientnet_b1", "densenet161",
)  # fmt: skip
PUBLISHED = {
    "seed": 0,
    # Figures 1 and 2; Figure 6.
    "perturb.options.epsilons": [0.001, 0.003],
    "perturb.options.n_iterations": [1, 2, 10],
    "perturb.options.max_images": 0,
    "perturb.options.precision": "float32",
    "perturb.options.dose_images": 0,
    "gradient_norms.network": "vgg16",
    "gradient_norms.options.max_images": 1000,
    # Table 1, Figures 3 and 4.
    "mask.options.blur_kernel": 101,
    "mask.options.blur_sigma": 15,
    "mask.options.threshold": 0.1,
    "mask.options.max_images": 0,
    "mask.options.max_images_below": 0,
    "localise.options.threshold": 0.1,
    "localise.options.max_images": 0,
    "localise.options.max_images_below": 0,
    "maps.figure_3.network": "vgg16_bn",
    "maps.figure_3.options.n_classes": 2,
    "maps.figure_3.options.threshold": 0.1,
    "maps.figure_4.network": "vgg16_bn",
    "maps.figure_4.options.contrasts": ["original", "mean", "max", "weighted"],
    "maps.figure_4.options.explainers": ["gradcam"],
    "maps.figure_4.options.n_classes": 3,
    "maps.figure_4.options.threshold": 0.1,
    # Figure 5.
    "vit_maps.figure_5.network": "vit_b_16",
    "vit.options.threshold": 0.1,
    "vit.options.blur_kernel": 101,
    "vit.options.blur_sigma": 15,
    # The networks: as they came, but for the one trained on CUB-200-2011.
    **{f"networks.{name}.images": {"data": "data/sets/imagenet", "image_size": 224, "crop": True} for name in IMAGENET},
    **{f"networks.{name}.network.architecture": name for name in (*IMAGENET, "vgg16_bn", "vit_b_16")},
    **{f"networks.{name}.training": {"method": "as_it_came", "options": {"labels": True}} for name in IMAGENET},
    "networks.vgg16_bn.images": {"data": "data/sets/cub", "image_size": 224, "crop": False},
    "networks.vgg16_bn.explanation": {"layer": "auto"},
    "networks.vgg16_bn.training.method": "fine_tune",
    "networks.vgg16_bn.training.options": {
        "frozen": "none",
        "epochs": 200,
        "batch_size": 128,
        "optimiser": "sgd",
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "constant",
        "clip": 0,
        "augmentation": "published",
        "batch_norm": "learned",
        "precision": "float32",
        "seed": 0,
    },
    "networks.vit_b_16.images": {"data": "data/sets/food101", "image_size": 224, "crop": False},
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_paper_profile_is_the_published_setting(key):
    assert at(parameters("profile=paper"), key) == PUBLISHED[key]


def test_paper_profile_has_the_published_networks_and_methods():
    paper = parameters("profile=paper")
    assert set(paper["perturb"]["networks"]) == set(IMAGENET)
    assert len(IMAGENET) == 9
    for experiment in ("mask", "control", "localise", "relate"):
        assert list(paper[experiment]["networks"]) == ["vgg16_bn", "vgg16_birds"]
    assert list(paper["vit"]["networks"]) == ["vit_b_16", "vit_b_16_imagenet"]
    assert set(paper["networks"]) == {*IMAGENET, "vgg16_bn", "vgg16_birds", "vit_b_16", "vit_b_16_imagenet"}
    same = [paper["networks"][name] for name in ("vgg16_bn", "vgg16_birds")]
    assert [entry["network"]["architecture"] for entry in same] == ["vgg16_bn", "vgg16"]
    assert all(same[0][key] == same[1][key] for key in ("images", "training"))
    assert set(paper["vit_maps"]) == {"figure_5", "figure_5_imagenet"}
    assert set(paper["perturb"]["options"]["contrasts"]) >= {"original", "mean", "max", "weighted"}
    mask, localise = paper["mask"]["options"], paper["localise"]["options"]
    cams = {"gradcam", "linear_approximation", "xgradcam"}
    assert set(mask["explainers"]) == {*cams, "fullgrad"}
    assert set(mask["baselines"]) == {"gaussian_blur", "zeros", "channel_mean"}
    assert mask["rules"] == ["published", "equal_kept"]
    assert paper["control"]["options"]["rules"] == ["unequal", "shifted", "area_10", "area_30", "area_50"]
    assert mask["contrasts"][:2] == ["original", "weighted"]
    assert set(localise["explainers"]) == {*mask["explainers"], "gradient"}
    assert set(localise["contrasts"]) >= {"original", "mean", "max", "weighted"}
    assert set(paper["maps"]["figure_3"]["options"]["explainers"]) == {*cams, "fullgrad"}
    assert {"gradcam", "gradcam++", "fullgrad"} <= set(paper["relate"]["options"]["explainers"])
    assert paper["maps"]["figure_3"]["options"]["contrasts"] == ["original", "weighted"]


@pytest.mark.parametrize("network", [*IMAGENET, "vgg16_bn", "vit_b_16"])
def test_paper_profile_starts_from_torchvisions_default_weights(network):
    _stem, digits = at(parameters("profile=paper"), f"networks.{network}.network.weights").rsplit("-", 1)
    assert f"-{digits}" in torchvision.models.get_model_weights(network).DEFAULT.url


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "networks").glob("*.yaml")), ids=lambda path: path.stem)
def test_weights_are_named_by_what_is_in_them(file):
    entries = {name: entry for name, entry in yaml.safe_load(file.read_text()).items() if name != "defaults"}
    assert entries
    for name, entry in entries.items():
        assert re.fullmatch(r"random|\w.*-[0-9a-f]{8}", entry["network"]["weights"]), name


@pytest.mark.parametrize("key", ["data.imagenet.path", "data.cub.path", "weights.path"])
@pytest.mark.parametrize("name", ["sample", "paper"])
def test_folders_are_overridden_at_one_place(name, key):
    """The one override reaches every network that uses the folder, whichever experiment it is for, and no other."""
    before = leaves(parameters(f"profile={name}"))
    after = leaves(parameters(f"profile={name}", f"{key}=/my/folder"))
    assert after == {other: "/my/folder" if value == before[key] else value for other, value in before.items()}
    changed = {other for other in before if before[other] != after[other]}
    if key.startswith("data."):
        assert any(other.startswith("networks.") for other in changed)
        assert all(other == key or re.search(r"\.(images|networks\.\w+)\.data$", other) for other in changed)
    else:
        assert changed == {key}


@pytest.mark.parametrize("key", ["gradient_norms", "maps.figure_3", "maps.figure_4", "vit_maps.figure_5"])
@pytest.mark.parametrize("name", PROFILES)
def test_network_that_is_not_among_the_networks_is_an_error(name, key):
    with pytest.raises(OmegaConfBaseException, match=r"networks\.inception_v9"):
        composed(f"profile={name}", f"{key}.network=inception_v9")


@pytest.mark.parametrize(
    "name",
    [
        "perturb@left", "saturate@left", "gradient_norms", "mask@left", "control@left", "localise@left",
        "intervene@left", "judge@left", "relate@left", "explore@left", "maps@figure_3", "maps@figure_4", "vit@left",
        "vit_maps@figure_5",
    ],
)  # fmt: skip
def test_network_that_an_earlier_run_left_is_refused(name, tmp_path):
    """Also where params.yaml was edited by hand, and nothing was composed."""
    params = yaml.safe_load(composed("profile=tiny"))
    for lists in (*LISTS, "intervene.networks"):
        entries = at(params, lists)
        entries["left"] = next(iter(entries.values()))
    for place in ("gradient_norms", "maps.figure_3", "maps.figure_4", "vit_maps.figure_5"):
        at(params, place)["network"] = "left"
    stage = at_stage(resolved(tmp_path / "repo", yaml.safe_dump(params)), name)
    assert "data/networks/left.pt" in {dep.def_path for dep in stage.deps}
    (named,) = (dep for dep in stage.deps if isinstance(dep, ParamsDependency))
    with pytest.raises(MissingParamsError, match=r"'networks\.left\.network' are missing"):
        named.save()


@pytest.mark.parametrize("key", ["maps.figure_3", "maps.figure_4"])
def test_network_without_a_layer_to_explain_is_an_error_in_figures_3_and_4(key):
    with pytest.raises(OmegaConfBaseException, match=r"networks\.resnet18\.explanation"):
        composed("profile=tiny", f"{key}.network=resnet18")


def test_figure_4_shows_the_network_of_figure_3():
    maps = parameters("profile=sample", "maps.figure_3.network=squeezenet1_0_birds")["maps"]
    assert maps["figure_4"]["network"] == "squeezenet1_0_birds"
    assert maps["figure_4"]["images"] == maps["figure_3"]["images"]


# --- the machine is not the experiment --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_nothing_of_the_machine_is_a_parameter(name):
    """What computes stands in machine.yaml; the size of a training step's batch alone belongs to the experiment."""
    trained = re.compile(r"networks\.\w+\.training\.options\.batch_size")
    parts = {key: set(key.split(".")) for key in leaves(parameters(f"profile={name}"))}
    assert {"device", "threads", "processes", "workers", "batch_size"} <= MACHINE
    assert [key for key in parts if parts[key] & {*MACHINE, "launch", "chunk"} and not trained.fullmatch(key)] == []


def test_nothing_of_the_machine_is_an_option():
    options = {
        (script, parameter.name)
        for script in {f"stages/{path.name}" for path in (ROOT / "stages").glob("[!_]*.py")} - BY_HAND
        for stage in commands_of(script)
        for parameter in stage.params
        if parameter.name in {*MACHINE, "launch", "chunk"}
    }
    assert options == {("stages/train.py", "batch_size")}


def test_nothing_of_the_machine_is_in_dvc_yaml():
    for name, definition in definitions().items():
        words = set(re.split(r"[^a-z_]+", definition["cmd"].replace("-", "_")))
        assert not words & {*MACHINE, "launch", "torchrun"}, name
        assert "machine.yaml" not in definition["deps"]


# --- dvc.yaml and the scripts -----------------------------------------------------------------------------------


def stages_of_dvc_yaml():
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def definitions():
    """`{stage, or family of stages: what it runs, needs and writes}`, not interpolated."""
    return {name: stage.get("do", stage) for name, stage in stages_of_dvc_yaml().items()}


def cells(name, params):
    """`{name in DVC: what interpolations find}` of a stage, or of each of a family."""
    family = stages_of_dvc_yaml()[name].get("foreach")
    if family is None:
        return {name: params}
    family = at(params, INTERPOLATION.fullmatch(family)[1]) if isinstance(family, str) else family
    return {f"{name}@{key}": params | {"key": key, "item": item} for key, item in family.items()}


def asked(cmd, scope):
    """What a command line of dvc.yaml asks for: `(positional words, {option: value})`, whatever DVC makes of it."""
    words, options = [], {}
    _python, _script, *todo = shlex.split(cmd)
    while todo:
        word = todo.pop(0)
        if word.startswith("--"):
            options[word[2:]] = INTERPOLATION.sub(lambda found: str(at(scope, found[1])), todo.pop(0))
        elif (found := INTERPOLATION.fullmatch(word)) is None:
            words.append(word)
        elif isinstance(value := at(scope, found[1]), dict):
            # The last one counts: an entry's own comes before the option of all, and nothing else does.
            assert found[1] == "item" or not options.keys() & value.keys(), f"{cmd} gives an option twice"
            options |= value
        else:
            words.append(value)
    return words, options


def test_dvc_yaml_is_read_from_top_to_bottom():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 400


def test_every_profile_resolves(profile):
    params, repo = profile
    for stage in repo.index.stages:
        assert "${" not in stage.cmd
        assert "  " not in stage.cmd
        assert not {"None", "null", "???", "{}", "[]"} & set(shlex.split(stage.cmd)), stage.cmd
    expected = [name for family in definitions() for name in cells(family, params)]
    assert sorted(stage.name for stage in repo.index.stages) == sorted(expected)
    assert nx.is_directed_acyclic_graph(repo.index.graph)


def test_every_command_line_gives_the_parameters(profile):
    """Click reads out of DVC's command line what params.yaml says, every option of the script and no other."""
    params, repo = profile
    commands = {stage.name: stage.cmd for stage in repo.index.stages}
    for family, definition in definitions().items():
        for name, scope in cells(family, params).items():
            words, options = asked(definition["cmd"], scope)
            stage, found = parsed(commands[name])
            expected = {key.replace("-", "_"): value for key, value in options.items()}
            expected = {key: tuple(value) if isinstance(value, list) else value for key, value in expected.items()}
            positional = [parameter.name for parameter in stage.params if isinstance(parameter, click.Argument)]
            expected |= dict(zip(positional, words))
            assert words[len(positional) :] in ([], [stage.name])
            assert found == expected, name
            on_or_off = ({key for key in values if isinstance(values[key], bool)} for values in (found, expected))
            assert next(on_or_off) == next(on_or_off)  # for True == 1


def test_every_experiment_runs_on_the_networks_it_names(profile):
    params, repo = profile
    names = [stage.name for stage in repo.index.stages]
    for family, key in {
        "data": "data",
        "contact_sheet": "sheets",
        "train": "networks",
        "perturb": "perturb.networks",
        "saturate": "perturb.networks",
        "mask": "mask.networks",
        "control": "control.networks",
        "localise": "localise.networks",
        "intervene": "intervene.networks",
        "judge": "judge.networks",
        "relate": "relate.networks",
        "vit": "vit.networks",
        "explore": "explore.networks",
        "maps": "maps",
        "vit_maps": "vit_maps",
        "figure_5": "vit_maps",
    }.items():
        found = [name for name in names if name.startswith(f"{family}@")]
        assert found == [f"{family}@{entry}" for entry in at(params, key)]


def test_the_report_shows_every_contact_sheet_and_every_figure_of_a_transformer(profile):
    params, _ = profile
    assert params["tables"]["report"]["more"] == [*params["sheets"], *params["vit_maps"]]
    assert set(page.FIGURES) <= {*params["figures"], *params["vit_maps"]}


def test_what_a_stage_needs_of_the_pipeline_some_stage_writes(profile):
    """Figures show networks that the profile trains, and networks are trained on data sets that it makes."""
    _, repo = profile
    outs = {out.def_path for stage in repo.index.stages for out in stage.outs}
    folders = {"/".join(out.split("/")[:2]) for out in outs if out.startswith("data/")} | {
        "plots",
        "metrics",
        "dvclive",
    }
    assert folders >= {"data/sets", "data/networks", "data/reports", "data/maps"}
    for stage in repo.index.stages:
        for dep in stage.deps:
            if dep.def_path.startswith(tuple(folders)):
                assert any(out == dep.def_path or out.startswith(f"{dep.def_path}/") for out in outs), dep.def_path


def test_every_script_has_a_stage():
    scripts = {f"stages/{path.name}" for path in (ROOT / "stages").glob("[!_]*.py")}
    run = {shlex.split(definition["cmd"])[1] for definition in definitions().values()}
    assert scripts - BY_HAND == run
    # And every subcommand a data set.
    sets = [name for path in (ROOT / "conf" / "data").glob("*.yaml") for name in yaml.safe_load(path.read_text())]
    assert sorted(command("stages/data.py").commands) == sorted(sets)


@pytest.mark.parametrize("script", sorted({shlex.split(stage["cmd"])[1] for stage in definitions().values()}))
def test_every_option_is_required(script):
    """Stages have no defaults of their own: one that is forgotten in params.yaml is an error."""
    for stage in commands_of(script):
        for parameter in stage.params:
            assert parameter.required, f"{stage.name} {parameter.name}"


def test_command_line_that_lacks_an_option_is_refused(profile):
    _, repo = profile
    for cmd in {arguments(stage.cmd)[0]: stage.cmd for stage in repo.index.stages}.values():
        words = shlex.split(cmd)
        for option in {word for word in words if word.startswith("--")}:
            values = {at + 1 for at, word in enumerate(words) if word == option and not words[at + 1].startswith("--")}
            kept = [word for at, word in enumerate(words) if word != option and at not in values]
            with pytest.raises(click.MissingParameter):
                parsed(shlex.join(kept))


@pytest.mark.parametrize("name", definitions())
def test_no_option_is_spelled_out_that_a_dictionary_could_hold(name):
    words = shlex.split(definitions()[name]["cmd"])
    for option, value in pairwise(words):
        if option.startswith("--") and (found := INTERPOLATION.fullmatch(value)):
            assert found[1].rpartition(".")[2] != option[2:].replace("-", "_"), f"{option} {value}"


def test_files_that_a_command_reads_and_writes_are_declared(profile):
    """What looks like a path in the repository stands among the stage's deps, outs, metrics and plots."""
    params, repo = profile
    data = {entry["path"] for entry in params["data"].values()} | {
        entry["images"]["data"] for entry in params["networks"].values()
    }
    for stage in repo.index.stages:
        outs, deps = ({item.def_path for item in items} for items in (stage.outs, stage.deps))
        values = {key: value for key, value in parsed(stage.cmd)[1].items() if isinstance(value, str)}
        assert outs <= set(values.values()), f"{stage.name} writes what its command does not name"
        read = {
            value
            for key, value in values.items()
            if key not in HASHED and (value in data or value.startswith(("data/", "plots/", "metrics/", "dvclive/")))
        }
        assert read <= outs | deps, stage.name


@pytest.mark.parametrize("name", ["sample", "paper"])
def test_folders_of_ones_own_are_dependencies_of_every_stage_that_reads_them(name, tmp_path):
    before = resolved(tmp_path / "before", composed(f"profile={name}"))
    after = resolved(tmp_path / "after", composed(f"profile={name}", "data.cub.path=/my/birds"))

    def readers(repo, folder):
        return {stage.name for stage in repo.index.stages if folder in {dep.def_path for dep in stage.deps}}

    assert readers(after, "/my/birds") == readers(before, "data/sets/cub") != set()
    assert all("/my/birds" in at_stage(after, name).cmd for name in readers(after, "/my/birds"))
    assert not readers(after, "data/sets/cub")


@pytest.mark.parametrize("name", ["sample", "paper"])
def test_a_folder_whose_name_has_blanks_is_one_word_of_every_command(name, tmp_path):
    folder = "/my birds; $HOME & more"
    overrides = [f"{key}.path='{folder}'" for key in ("data.imagenet", "data.cub", "weights")]
    repo = resolved(tmp_path / "blanks", composed(f"profile={name}", *overrides))
    for stage in repo.index.stages:
        options = parsed(stage.cmd)[1].items()
        given = {option: value for option, value in options if isinstance(value, str) and "birds;" in value}
        assert set(given.values()) <= {folder}
        assert ("birds;" in stage.cmd) == bool(given)
        assert ("weights_path" in given) == stage.name.startswith("train@")


def at_stage(repo, name):
    return next(stage for stage in repo.index.stages if stage.name == name)


def test_what_dvc_keeps_is_ignored_without_its_help(profile):
    """DVC would write a .gitignore into the output's folder, on which later stages depend."""
    _, repo = profile
    ignored = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("/")]
    for stage in repo.index.stages:
        for out in stage.outs:
            if out.use_cache:
                assert any(f"/{out.def_path}/".startswith(f"{line.rstrip('/')}/") for line in ignored), out.def_path


@pytest.mark.parametrize("name", ["data/perturbation/a.npz", "data/sets/synthbirds/images", "plots/table1.csv"])
def test_what_a_killed_process_leaves_is_ignored(tiny, tmp_path, name):
    """In a folder of data it would be a change of what later stages depend on, beside a table a file for git."""
    with runtime.atomic(tmp_path / name) as partial:
        partial.touch()
        assert tiny.dvcignore.is_ignored_file(str(Path(tiny.root_dir, name).with_name(partial.name)))
    assert any(fnmatch(partial.name, line) for line in (ROOT / ".gitignore").read_text().splitlines())


@pytest.mark.parametrize("key", ["data", "sheets"])
def test_empty_dictionary_gives_no_stage(key, tiny, tmp_path):
    repo = resolved(tmp_path / "repo", yaml.safe_dump(parameters("profile=tiny") | {key: {}}))
    gone = {stage.name for stage in tiny.index.stages} - {stage.name for stage in repo.index.stages}
    assert gone == {{"data": "data@synthbirds", "sheets": "contact_sheet@synthbirds"}[key]}


# --- what a change runs again -----------------------------------------------------------------------------------


def stages_behind(repo, changed):
    """Names of the stages that `changed` picks, and of all that depend on them."""
    graph = repo.index.graph.reverse()  # DVC's edges point from a stage to what it needs
    picked = [stage for stage in graph if changed(stage)]
    assert picked
    return {name.name for stage in picked for name in (stage, *nx.descendants(graph, stage))}


def groups(names):
    """Families of stages, but figures and their maps one by one."""
    return {name if name.startswith(("figure@", "maps@")) else name.partition("@")[0] for name in names}


def edited(file):
    """Whether a stage depends on a file, or on a folder that has it."""
    return lambda stage: any(f"{file}/".startswith(f"{dep.def_path}/") for dep in stage.deps)


def figures(*names):
    return {f"figure@{name}" for name in names}


JUDGED = {"claims", "report", *figures("ledger")}
PERTURBED = {"perturbation", *JUDGED, *figures("figure_1_2", "doses", "perturbation_vs_published")}
SATURATED = {"saturation", *JUDGED, *figures("saturation")}
CONTROLLED = {"control", *JUDGED}
MASKED = {"mask", "masking", *CONTROLLED, *figures("table1", "by_ambiguity")}
LOCALISED = {"localise", "localisation", *JUDGED, *figures("localisation", "localisation_by_p_2")}
BOARD = {"leaderboard", "report", *figures("leaderboard")}
INTERVENED = {"intervene", "intervention", *BOARD, *JUDGED, *figures("intervention")}
ASKED = {"judge", *BOARD}
RELATED = {"relate", *JUDGED}
MAPPED = {"maps@figure_3", "maps@figure_4", "report", *figures("figure_3", "figure_4")}
COMPARED = {"vit", "transformers", *JUDGED, *figures("vit", "vit_blocks")}
FIGURE_5 = {"vit_maps", "figure_5", "report"}
EXPLORED = {"explore", "report"}
OF_A_LAYER = ("mask", "control", "localise", "intervene", "judge", "relate", "explore")
FIGURE_6 = {"gradient_norms", *JUDGED, *figures("figure_6")}


@pytest.fixture(scope="module")
def stale(tiny, tmp_path_factory):
    """What runs again after overrides: a parameter changes a command line, and DVC's graph has the rest."""
    before = {stage.name: stage.cmd for stage in tiny.index.stages}

    def stale(*overrides):
        repo = resolved(tmp_path_factory.mktemp("stale") / "repo", composed("profile=tiny", *overrides))
        return stages_behind(repo, lambda stage: stage.cmd != before[stage.name])

    return stale


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("perturb.options.epsilons=[0.002]", {"perturb", *PERTURBED}),
        ("perturb.options.max_images=5", {"perturb", *PERTURBED}),
        ("perturb.options.dose_images=4", {"perturb", *PERTURBED}),
        ("saturate.options.n_iterations=3", {"saturate", *SATURATED}),
        ("gradient_norms.options.max_images=5", FIGURE_6),
        ("gradient_norms.network=googlenet", FIGURE_6),
        ("mask.options.explainers=[gradcam]", MASKED),
        ("mask.options.threshold=0.2", {"networks", *MASKED, *LOCALISED, *ASKED, *MAPPED, *COMPARED}),
        ("control.options.rules=[unequal,shifted]", CONTROLLED),
        ("localise.options.disc_radius=0.2", {*LOCALISED, *ASKED, *COMPARED}),
        ("localise.options.max_images=5", LOCALISED),
        ("intervene.options.doses=[0.2]", INTERVENED),
        ("intervene.options.max_images=5", INTERVENED),
        ("judge.options.steps=4", ASKED),
        ("judge.options.max_images=5", ASKED),
        ("tables.leaderboard.seed=1", BOARD),
        ("relate.options.explainers=[gradcam]", RELATED),
        ("relate.options.max_images=5", RELATED),
        ("maps.figure_3.options.max_images=5", {"maps@figure_3", "figure@figure_3", "report"}),
        ("maps.figure_4.options.max_images=5", {"maps@figure_4", "figure@figure_4", "report"}),
        ("explore.options.shares=[0.5]", EXPLORED),
        ("vit.blocks.rollout_block=1", {*COMPARED, *FIGURE_5}),
        ("vit.options.max_images=5", COMPARED),
        ("vit_maps.figure_5.options.max_images=5", FIGURE_5),
        ("tables.claims.seed=1", JUDGED),
        ("sheets.synthbirds.options.per_species=1", {"contact_sheet", "report"}),
    ],
)
def test_a_parameter_runs_again_only_what_depends_on_it(stale, override, expected):
    assert groups(stale(override)) == expected


@pytest.mark.parametrize(
    ("network", "behind"),
    [
        ("resnet18", {"perturb@resnet18", "saturate@resnet18", *PERTURBED, *SATURATED, *FIGURE_6}),
        ("googlenet", {"perturb@googlenet", "saturate@googlenet", *PERTURBED, *SATURATED}),
        (
            "vgg16_bn_narrow",
            {
                *(MASKED | LOCALISED | INTERVENED | ASKED | RELATED | MAPPED | EXPLORED) - set(OF_A_LAYER),
                *(f"{family}@vgg16_bn_narrow" for family in OF_A_LAYER),
            },
        ),
        ("vit_mini", {*COMPARED, "vit@vit_mini", "vit_maps@figure_5", "figure_5@figure_5"} - {"vit"}),
    ],
)
def test_a_networks_recipe_trains_that_network_again_and_no_other(stale, network, behind):
    assert stale(f"networks.{network}.training.options.epochs=3") == {f"train@{network}", "networks", *behind}


def test_a_networks_image_size_reaches_its_experiments_only(stale):
    behind = stale("networks.resnet18.images.image_size=40")
    assert {name for name in behind if "@" in name} - figures(
        "figure_1_2", "doses", "perturbation_vs_published", "saturation", "figure_6", "ledger"
    ) == {"train@resnet18", "perturb@resnet18", "saturate@resnet18"}


def test_another_picture_of_the_birds_runs_everything_again(stale, tiny):
    assert stale("data.synthbirds.ambiguity=0.3") == {stage.name for stage in tiny.index.stages}


def test_another_network_leaves_the_cells_of_the_others_alone(tiny, tmp_path):
    more = (
        "+perturb.networks.vgg16_bn_narrow=${networks.vgg16_bn_narrow.images}",
        "~perturb.networks.mobilenet_v3_small",
    )
    repo = resolved(tmp_path / "repo", composed("profile=tiny", *more))
    before, after = ({stage.name: stage.cmd for stage in of.index.stages} for of in (tiny, repo))
    assert after.keys() - before.keys() == {"perturb@vgg16_bn_narrow", "saturate@vgg16_bn_narrow"}
    assert before.keys() - after.keys() == {"perturb@mobilenet_v3_small", "saturate@mobilenet_v3_small"}
    # Those that gather the cells are told which.
    told = {name for name in after.keys() & before.keys() if after[name] != before[name]}
    assert told == {"perturbation", "saturation", "claims"}


@pytest.mark.parametrize(
    "file",
    [
        "cxlib/review/report/figures.py",
        "cxlib/review/report/page",
        "cxlib/review/exploration.py",
        "cxlib/review/ledger/tables.py",
        "cxlib/review/ledger/claims.py",
        "cxlib/review/ledger/statistics.py",
        "cxlib/review/perturbation.py",
        "cxlib/review/relations.py",
        "cxlib/review/selection.py",
        "cxlib/review/variants.py",
        "cxlib/metrics/masking.py",
        "cxlib/metrics/interventions.py",
        "cxlib/metrics/localisation.py",
        "cxlib/metrics/cost.py",
        "cxlib/metrics/parts.py",
        "cxlib/review/judges.py",
        "cxlib/review/ledger/leaderboard.py",
        "cxlib/synthbirds/repainting.py",
        "cxlib/explainers/cam.py",
        "cxlib/explainers/vit.py",
        "cxlib/overlay.py",
        "cxlib/taps.py",
        "cxlib/contrasts.py",
        "stages/figure.py",
        "stages/table.py",
    ],
)
def test_editing_what_explains_and_reports_trains_and_paints_nothing(tiny, file):
    behind = groups(stages_behind(tiny, edited(file)))
    assert not behind & {"train", "data"}


@pytest.mark.parametrize(
    ("file", "again"),
    [
        ("cxlib/training/fine_tune.py", {"train"}),
        ("cxlib/training/probe.py", {"train"}),
        ("stages/_training.py", {"train"}),
        ("cxlib/networks/build.py", {"train"}),
        ("cxlib/runs.py", {"train", "data"}),
    ],
)
def test_editing_what_trains_trains_again(tiny, file, again):
    assert groups(stages_behind(tiny, edited(file))) & {"train", "data"} == again


def test_no_output_is_also_kept_out_of_the_run_cache(profile):
    """A plain output without cache, a persistent one, or a remote dependency, silently loses DVC's run cache."""
    _, repo = profile
    for stage in repo.index.stages:
        assert stage.deps
        assert not stage.is_callback
        assert not stage.always_changed
        assert all(dep.protocol == "local" for dep in stage.deps)
        for out in stage.outs:
            assert not out.persist
            assert out.protocol == "local"
            assert out.use_cache or out.is_metric or out.is_plot, out.def_path
