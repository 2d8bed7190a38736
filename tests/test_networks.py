"""Networks come by name, take images in [0, 1], fit the published weights' files, and survive a round trip."""

import copy
import hashlib
import io
import re
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
import yaml
from torch import nn
from torch.testing import assert_close

from cxlib import networks, runtime, taps
from cxlib.networks import build, explanation_layer, weights
from cxlib.networks.build import TRUNK, heads

BUILT = [
    "resnet18",
    "googlenet",
    "mobilenet_v3_small",
    "squeezenet1_0",
    "vgg16_bn_narrow",
    "vit_mini",
    "vit_cifar10",
    "test_resnet.r160_in1k",
]
#: The nine architectures of the review's Figures 1 and 2.
REVIEWED = (
    "resnet18", "alexnet", "googlenet", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "vgg16",
    "efficientnet_b1", "densenet161",
)  # fmt: skip
EXPLAINED = dict.fromkeys(REVIEWED, 7) | {"alexnet": 13, "vgg16": 14, "vgg16_bn": 14, "squeezenet1_0": 13, "swin_t": 7}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise URLError("no network in tests")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty cache of torchvision's downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))


def small(num_classes=4, seed=0):
    with runtime.seeded(seed):
        return build("vgg16_bn_narrow", num_classes=num_classes)


def store(state, folder, stem):
    """Write a state_dict as torchvision names its files: `<stem>-<hash8>.pth`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = folder / f"{stem}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    path.write_bytes(buffer.getvalue())
    return path


def assert_same_state(state, expected):
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


# --- building ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT)
def test_network_is_frozen_in_eval_mode_and_gives_logits(name):
    network = build(name, num_classes=7)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = network(x)
    assert logits.shape == (2, 7)
    assert_close(logits, network.inner((x - network.mean) / network.std), rtol=0, atol=0)
    assert_close(network(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)


def test_normalisation_is_imagenets():
    network = small()
    seen = []
    network.inner.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    network(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    network(torch.tensor([0.485 + 0.229, 0.456 + 0.224, 0.406 + 0.225]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert_close(seen[0], torch.zeros(1, 3, 32, 32))
    assert_close(seen[1], torch.ones(1, 3, 32, 32))


def test_timms_normalisation_is_its_own():
    network = build("vit_tiny_patch16_224", num_classes=2)
    assert network.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert network.std.flatten().tolist() == [0.5, 0.5, 0.5]


def test_random_weights_have_a_thousand_classes_unless_told():
    with torch.device("meta"):
        assert build("alexnet")(torch.empty(1, 3, 224, 224)).shape == (1, 1000)


def test_unknown_network_lists_near_names():
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18"):
        build("resnet19")
    with pytest.raises(ValueError, match=r"'xqzv'.*none"):
        build("xqzv")


@pytest.mark.parametrize("name", ["fcn_resnet50", "fasterrcnn_resnet50_fpn", "r3d_18"])
def test_networks_that_are_no_image_classifiers_are_unknown(name):
    with pytest.raises(ValueError, match=name):
        build(name)


# --- preprocessing ----------------------------------------------------------------------------------------------


def photograph(width=301, height=277):
    noise = torch.rand(3, 9, 11, generator=torch.Generator().manual_seed(0))[None]
    large = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0].clamp(0, 1)
    return torchvision.transforms.functional.to_pil_image(large)


@pytest.mark.parametrize(
    ("name", "weights", "side"),
    [
        ("resnet50", "IMAGENET1K_V1", 224),
        ("resnet50", "DEFAULT", 224),
        ("efficientnet_b1", "IMAGENET1K_V2", 240),
        ("efficientnet_v2_l", "DEFAULT", 480),
        ("inception_v3", "DEFAULT", 299),
        ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1", 224),
    ],
)
def test_preprocessing_and_the_normalisation_inside_are_what_torchvision_publishes(name, weights, side):
    image = photograph()
    theirs = torchvision.models.get_model_weights(name)[weights].transforms()(image)
    ours = networks.transform(name, weights)(image)
    assert ours.shape == (3, side, side)
    assert ours.min() >= 0
    assert ours.max() <= 1
    with torch.device("meta"):
        inner = torchvision.models.get_model(name)
    published = torchvision.models.get_model_weights(name)[weights].transforms()
    network = networks.Network(name, inner, {}, published.mean, published.std)
    assert_close((ours - network.mean) / network.std, theirs)


def test_the_one_network_of_torchvision_that_is_normalised_otherwise_normalises_so():
    network = build("efficientnet_v2_l", num_classes=2)
    assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet.r160_in1k", "tf_efficientnet_b0"])
def test_preprocessing_and_the_normalisation_inside_are_what_timm_publishes(name):
    import timm

    network, image = build(name, num_classes=2), photograph()
    config = timm.data.resolve_data_config(model=network.inner)
    ours = networks.transform(name)(image)
    assert ours.shape == config["input_size"]
    assert_close((ours - network.mean) / network.std, timm.data.create_transform(**config)(image))


@pytest.mark.parametrize("weights", [None, "weights/mine.pth"])
def test_weights_without_published_preprocessing_are_resized_to_256_and_cropped(weights):
    image = photograph()
    expected = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms(mean=[0.0] * 3, std=[1.0] * 3)(image)
    for name in ("resnet50", "vgg16_bn_narrow"):
        assert_close(networks.transform(name, weights)(image), expected)


def test_photographs_in_grey_are_prepared_too():
    assert networks.transform("resnet18")(photograph().convert("L")).shape == (3, 224, 224)


def test_preprocessing_of_an_unknown_network_lists_near_names():
    with pytest.raises(ValueError, match=r"'resnet19'.*resnet18"):
        networks.transform("resnet19")


# --- explanation layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "side"), EXPLAINED.items())
def test_explanation_layer_is_the_last_spatial_map(name, side):
    with torch.device("meta"):
        network = build(name)
        shapes = []
        explanation_layer(network).register_forward_hook(lambda _module, _inputs, output: shapes.append(output.shape))
        network(torch.empty(2, 3, 224, 224))
    assert [(len(shape), shape[0], *shape[2:]) for shape in shapes] == [(4, 2, side, side)]


class WithOwnHead(nn.Module):
    """A network as the trunk of another."""

    def __init__(self, system):
        super().__init__()
        self.system, self.head = system, nn.Linear(1000, 2)

    def forward(self, images):
        return self.head(self.system(images))


@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.Sequential, WithOwnHead])
@pytest.mark.parametrize("name", [*EXPLAINED, "swin_s3_tiny_224", "resnet10t"])
def test_explanation_layer_is_the_same_inside_another_module(name, wrap):
    with torch.device("meta"):
        network = build(name)
        wrapped = wrap(network)
    layer = explanation_layer(network)
    assert explanation_layer(wrapped) is layer
    assert networks.channels_last(wrapped, layer) is networks.channels_last(network, layer) is ("swin_s3" in name)


@pytest.mark.parametrize("name", ["vgg16_bn", "vgg16_bn_narrow"])
def test_layer_of_vgg_is_its_last_convolution_before_batch_norm(name):
    with torch.device("meta"):
        features = (network := build(name)).inner.features
    assert explanation_layer(network) is features[40]
    assert isinstance(features[40], nn.Conv2d)
    assert isinstance(features[41], nn.BatchNorm2d)
    assert not any(isinstance(module, nn.Conv2d) for module in features[41:])


def test_layer_by_name_or_module():
    network = small()
    assert explanation_layer(network, "features.7") is network.inner.features[7]
    assert explanation_layer(network.inner, "features.7") is network.inner.features[7]
    assert explanation_layer(network, network.inner.features[7]) is network.inner.features[7]


def test_any_module_with_convolutions_has_a_layer():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert explanation_layer(plain) is plain[2]
    with pytest.raises(ValueError, match="ends in no spatial map"):
        explanation_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))


def test_layer_of_inception_is_its_last_concatenation():
    with torch.device("meta"):
        network = build("inception_v3")
    assert explanation_layer(network) is network.inner.Mixed_7c


def test_a_stranger_with_a_known_name_is_explained_at_its_last_convolution():
    class ResNet(nn.Sequential):
        """CIFAR's: three stages, so there is no layer4."""

    network = ResNet(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
    assert explanation_layer(network) is network[2]


def test_wrong_layer_name_lists_candidates():
    with pytest.raises(ValueError, match=r"no layer 'feature\.40'.*features\.40"):
        explanation_layer(small(), "feature.40")


def test_layer_of_timms_networks_is_their_last_stage():
    with torch.device("meta"):
        for name, layer in (("resnet10t", "layer4"), ("convnext_atto", "stages.3"), ("hrnet_w18_small", "final_layer")):
            network = build(name)
            assert explanation_layer(network) is network.inner.get_submodule(layer)


@pytest.mark.parametrize(("name", "layer"), [("swin_t", "features"), ("swin_s3_tiny_224", "layers.3")])
def test_maps_with_channels_last_are_recorded_with_channels_first(name, layer):
    with runtime.seeded(0):
        network = build(name, num_classes=3)
        images = torch.rand(1, 3, 224, 224)
    seen = []
    module = explanation_layer(network, layer)
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    recorded = taps.record(network, images, module)
    handle.remove()
    assert seen[0].shape == (1, 7, 7, 768)
    assert torch.equal(recorded.activation, seen[0].permute(0, 3, 1, 2))
    assert recorded.pull_back(torch.ones(1, 2, 3)).shape == (1, 2, 768, 7, 7)


def test_layers_inside_such_networks_that_have_channels_first_are_left_alone():
    with torch.device("meta"):
        network = build("swin_t")
    assert networks.channels_last(network, network.inner.features[7])
    assert not networks.channels_last(network, network.inner.permute)
    assert not networks.channels_last(network, network.inner.features[0][0])


@pytest.mark.parametrize("name", ["vit_b_16", "vit_tiny_patch16_224", "pit_ti_224", "mixer_s32_224"])
def test_networks_of_tokens_ask_for_a_layer(name):
    with torch.device("meta") if name == "vit_b_16" else torch.device("cpu"):
        network = build(name, num_classes=2)
    with pytest.raises(ValueError, match="name a layer"):
        explanation_layer(network)


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_weights_are_found_in_a_folder_under_the_networks_name(tmp_path, half):
    state = small(seed=1).inner.state_dict()
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    store(state, tmp_path, "vgg16_bn_narrow")
    network = build("vgg16_bn_narrow", "DEFAULT", folder=tmp_path)
    assert_same_state(network.inner.state_dict(), {k: v.float() if half else v for k, v in state.items()})
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 4)


def test_weights_of_another_name_are_asked_for_by_it(tmp_path):
    store(small(seed=1).inner.state_dict(), tmp_path, "vgg16_bn_narrow")
    birds = small(seed=2).inner.state_dict()
    store(birds, tmp_path, "vgg16_bn_narrow_birds")
    assert_same_state(build("vgg16_bn_narrow", "vgg16_bn_narrow_birds", folder=tmp_path).inner.state_dict(), birds)
    assert_same_state(
        build("vgg16_bn_narrow", "DEFAULT", folder=tmp_path).inner.state_dict(), small(seed=1).inner.state_dict()
    )


@pytest.mark.parametrize("suffix", ["pth", "pt"])
def test_weights_may_be_a_file(tmp_path, suffix):
    state = small(seed=1).inner.state_dict()
    store(state, tmp_path, "any").rename(tmp_path / f"mine.{suffix}")
    assert_same_state(build("vgg16_bn_narrow", str(tmp_path / f"mine.{suffix}")).inner.state_dict(), state)


def test_weights_whose_hash_differs_are_refused(tmp_path):
    path = store(small().inner.state_dict(), tmp_path, "vgg16_bn_narrow")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
        build("vgg16_bn_narrow", "DEFAULT", folder=tmp_path)


def test_two_candidates_are_refused(tmp_path):
    first, second = (store(small(seed=seed).inner.state_dict(), tmp_path, "vgg16_bn_narrow") for seed in (1, 2))
    with pytest.raises(ValueError, match="several weights") as caught:
        build("vgg16_bn_narrow", "DEFAULT", folder=tmp_path)
    assert first.name in str(caught.value)
    assert second.name in str(caught.value)


# Names that say what is in the file: NAME-<first eight hex digits of its SHA-256>.


@pytest.mark.parametrize("stem", ["vgg16_bn_narrow", "vgg16_bn_narrow_birds", "alexnet-owt", "mine[1]*"])
def test_weights_named_by_their_hash_are_that_file_of_the_folder(tmp_path, stem):
    """Also where a stem alone would fit several."""
    states = [small(seed=seed).inner.state_dict() for seed in (1, 2)]
    paths = [store(state, tmp_path, stem) for state in states]
    for state, path in zip(states, paths):
        assert_same_state(build("vgg16_bn_narrow", path.stem, folder=tmp_path).inner.state_dict(), state)


def test_weights_named_by_their_hash_whose_content_is_another_are_refused(tmp_path):
    path = store(small(seed=1).inner.state_dict(), tmp_path, "vgg16_bn_narrow")
    path.write_bytes(store(small(seed=2).inner.state_dict(), tmp_path, "other").read_bytes())
    message = f"{path} is damaged: its SHA-256 does not begin with {path.stem[-8:]}"
    with pytest.raises(ValueError, match=re.escape(message)):
        build("vgg16_bn_narrow", path.stem, folder=tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """The addresses of the weights that torchvision was asked for; it gives what an untrained network has."""
    urls = []

    def give(member, *, progress, check_hash, weights_only):
        assert check_hash
        assert weights_only
        urls.append(member.url)
        return build(member.url.split("/")[-1].partition("-")[0], num_classes=1000).inner.state_dict()

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", give)
    return urls


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("mobilenet_v3_large-8738ca79", "mobilenet_v3_large-8738ca79.pth"),  # the first weights
        ("mobilenet_v3_large-5c1a4163", "mobilenet_v3_large-5c1a4163.pth"),  # and the second
        ("any name-5c1a4163", "mobilenet_v3_large-5c1a4163.pth"),  # the hash says enough
    ],
)
def test_weights_named_by_their_hash_are_looked_up_among_torchvisions(asked, tmp_path, named, url):
    build("mobilenet_v3_large", named, folder=tmp_path)
    assert [address.split("/")[-1] for address in asked] == [url]


def test_weights_in_the_folder_come_before_torchvisions(asked, tmp_path):
    path = store(small().inner.state_dict(), tmp_path, "vgg16_bn_narrow")
    build("vgg16_bn_narrow", path.stem, folder=tmp_path)
    assert asked == []


PAPER = yaml.safe_load((Path(__file__).parents[1] / "conf" / "networks" / "paper.yaml").read_text())
NAMED = {
    entry["network"]["architecture"]: entry["network"]["weights"] for entry in PAPER.values() if "network" in entry
}


@pytest.mark.parametrize("name", [*REVIEWED, "vgg16_bn", "vit_b_16"])
def test_the_papers_weights_are_torchvisions_default_ones(monkeypatch, name):
    """MNASNet's file is called mnasnet1.0_top1_73.456-f206786ef8.pth, with ten digits."""
    asked = []
    monkeypatch.setattr(
        torchvision.models.WeightsEnum, "get_state_dict", lambda member, **_: asked.append(member) or {}
    )
    assert weights.find(name, NAMED[name]) == {}
    assert asked == [torchvision.models.get_model_weights(name).DEFAULT]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnet18", "resnet18-00000000"),  # a hash that nobody published
        ("resnet18", "vgg16-397923af"),  # one of another architecture
        ("vgg16_bn_narrow", "vgg16_bn_narrow-f37072fd"),  # torchvision has no such network
        ("test_resnet.r160_in1k", "test_resnet-0123abcd"),
    ],
)
def test_weights_named_by_a_hash_that_is_nowhere_are_one_line(asked, tmp_path, name, wanted):
    for folder in (tmp_path, None):
        with pytest.raises(ValueError) as caught:
            build(name, wanted, folder=folder)
        where = folder or "any folder"
        assert str(caught.value) == f"no weights {wanted!r} for {name}: there is no {wanted}.pth in {where}"
    assert asked == []


def test_failed_download_of_weights_named_by_their_hash_names_that_file(torch_home, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"put resnet18-f37072fd.pth into {tmp_path}")) as caught:
        build("resnet18", "resnet18-f37072fd", folder=tmp_path)
    assert str(caught.value).startswith("the weights of resnet18 cannot be downloaded (")


@pytest.mark.parametrize("stem", ["mine-2024", "mine-0123456789", "mine-notahash"])
def test_what_only_looks_like_a_hash_belongs_to_the_name(tmp_path, stem):
    state = small(seed=1).inner.state_dict()
    store(state, tmp_path, stem)
    assert_same_state(build("vgg16_bn_narrow", stem, folder=tmp_path).inner.state_dict(), state)


def test_missing_weights_name_the_expected_file(tmp_path):
    with pytest.raises(ValueError, match=re.escape("vgg16_bn_narrow-<hash8>.pth")) as caught:
        build("vgg16_bn_narrow", "DEFAULT", folder=tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'none.pth'} does not exist")):
        build("vgg16_bn_narrow", str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"no weights 'IMAGENET1K_V9' for resnet18"):
        build("resnet18", "IMAGENET1K_V9", folder=tmp_path)


@pytest.mark.parametrize("name", ["squeezenet1_1", "test_resnet.r160_in1k"])
def test_failed_download_names_the_file_to_bring(torch_home, tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"put {name}-<hash8>.pth into {tmp_path}")) as caught:
        build(name, "DEFAULT", folder=tmp_path)
    assert "cannot be downloaded" in str(caught.value)


def test_weights_of_another_architecture_are_refused(tmp_path):
    store(build("squeezenet1_1", num_classes=2).inner.state_dict(), tmp_path, "vgg16_bn_narrow")
    with pytest.raises(ValueError, match="do not fit vgg16_bn_narrow"):
        build("vgg16_bn_narrow", "DEFAULT", folder=tmp_path)
    deeper = small().inner.state_dict() | {f"features.{layer}.weight": torch.zeros(1) for layer in range(44, 144)}
    torch.save(deeper, tmp_path / "deeper.pth")
    with pytest.raises(ValueError, match="do not fit vgg16_bn_narrow: ") as caught:
        build("vgg16_bn_narrow", str(tmp_path / "deeper.pth"))
    assert len(str(caught.value).replace(str(tmp_path), "")) < 500, "a person reads this line"
    wider = small().inner.state_dict() | {"features.0.weight": torch.zeros(16, 3, 3, 3)}
    torch.save(wider, tmp_path / "wider.pth")
    with pytest.raises(ValueError, match=r"do not fit vgg16_bn_narrow: .*features\.0\.weight"):
        build("vgg16_bn_narrow", str(tmp_path / "wider.pth"))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04"])
def test_file_that_is_no_weights_is_refused(tmp_path, content):
    (tmp_path / "mine.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.pth is not a file of weights"):
        build("vgg16_bn_narrow", str(tmp_path / "mine.pth"))


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"state_dict": {}}, 1])
def test_file_that_holds_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=r"mine\.pth"):
        build("vgg16_bn_narrow", str(tmp_path / "mine.pth"))


@pytest.mark.parametrize("of", ["weights", "a network", "torchvision's cache"])
def test_pickled_code_is_never_run(torch_home, tmp_path, trap, of):
    path, content = tmp_path / "mine.pth", {"features.0.weight": trap}
    load = {
        "weights": lambda: build("vgg16_bn_narrow", str(path)),
        "a network": lambda: networks.load(path),
        "torchvision's cache": lambda: build("squeezenet1_1", "DEFAULT"),
    }[of]
    if of == "a network":
        content = {"name": "vgg16_bn_narrow", "options": {}, "preparation": None, "state_dict": content}
    if of == "torchvision's cache":
        path = tmp_path / "torch_home" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
        path.parent.mkdir(parents=True)
    torch.save(content, path)
    with pytest.raises(ValueError) as caught:
        load()
    assert "\n" not in str(caught.value)
    assert not trap.has_sprung()
    torch.load(path, weights_only=False)
    assert trap.has_sprung(), "what never springs would prove nothing"


# The quirks of torchvision's published files: GoogLeNet's holds the auxiliary heads; those of ResNet and DenseNet are
# older than batch norm's counters, DenseNet's than today's names; MNASNet checks a version beside the tensors.


def published_state(name):
    """A state_dict like that in torchvision's published file, with random values, and the network that it describes."""
    options = {"init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, num_classes=10, **options).eval()
    state = network.state_dict()
    if name in ("densenet121", "resnet18"):
        old = ((re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key), state[key]) for key in state)
        state = OrderedDict((key, value) for key, value in old if "num_batches_tracked" not in key)
        assert ("features.denseblock1.denselayer1.norm.1.weight" in state) == (name == "densenet121")
    return network, state


@pytest.mark.parametrize("source", ["folder", "file", "download"])
@pytest.mark.parametrize("name", ["googlenet", "densenet121", "mnasnet0_5", "resnet18"])
def test_published_files_are_loaded(tmp_path, monkeypatch, name, source):
    theirs, state = published_state(name)
    path = store(state, tmp_path, name)
    if source == "download":
        loaded = torch.load(path, weights_only=True)
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: loaded)
    folder = tmp_path if source == "folder" else tmp_path / "empty"
    network = build(name, str(path) if source == "file" else "DEFAULT", folder=folder)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    normalised = (x - network.mean) / network.std
    if name == "googlenet":
        theirs.transform_input = True  # as torchvision sets it with its weights
    with torch.no_grad():
        assert_close(network(x), theirs(normalised))


def test_transform_input_is_an_option_of_googlenets_weights_alone(tmp_path):
    assert build("googlenet", num_classes=2).inner.transform_input is False
    state = build("googlenet", num_classes=2).inner.state_dict()
    store(state, tmp_path, "googlenet")
    assert build("googlenet", "DEFAULT", folder=tmp_path).inner.transform_input is True


# --- heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg16_bn_narrow", "squeezenet1_1", "mobilenet_v3_small", "test_resnet.r160_in1k"])
def test_head_of_another_size_is_replaced_and_all_else_is_kept(tmp_path, name):
    with runtime.seeded(1):
        state = build(name, num_classes=5).inner.state_dict()
    store(state, tmp_path, name)
    assert_same_state(build(name, "DEFAULT", folder=tmp_path).inner.state_dict(), state)
    assert_same_state(build(name, "DEFAULT", 5, tmp_path).inner.state_dict(), state)
    network = build(name, "DEFAULT", 3, tmp_path)
    assert network(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    new = network.inner.state_dict()
    changed = [key for key in state if state[key].shape != new[key].shape]
    assert len({key.rpartition(".")[0] for key in changed}) == 1
    assert_same_state({k: v for k, v in new.items() if k not in changed}, {k: state[k] for k in new.keys() - changed})
    assert not any(parameter.requires_grad for parameter in network.parameters())


#: Networks whose logits are those of several heads, and how many.
PAIRS = {"deit_tiny_distilled_patch16_224": 2, "levit_128s": 2, "crossvit_tiny_240": 2}


@pytest.mark.parametrize("name", PAIRS)
def test_every_head_of_another_size_is_replaced(tmp_path, name):
    with runtime.seeded(1):
        state = build(name, num_classes=5).inner.state_dict()
    store(state, tmp_path, name)
    network = build(name, "DEFAULT", 3, tmp_path)
    side = int(name[-3:]) if name[-3:].isdigit() else 224
    assert network(torch.rand(1, 3, side, side)).shape == (1, 3)
    changed = {
        key.rpartition(".")[0] for key, value in network.inner.state_dict().items() if value.shape != state[key].shape
    }
    assert len(changed) == PAIRS[name]
    assert all(network.inner.get_submodule(head).weight.std() > 0 for head in changed)
    networks.save(network, tmp_path / "one.pt")
    assert_same_state(networks.load(tmp_path / "one.pt").inner.state_dict(), network.inner.state_dict())


def test_looking_for_the_heads_draws_nothing():
    network, state = build("vit_mini", num_classes=3), torch.random.get_rng_state()
    assert heads(network) == ["head"]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["regnet_y_400mf", "vit_mini", "levit_128s", "efficientnet_b1"])
def test_a_network_without_weights_has_the_names_and_shapes_of_one_with_them(name):
    with networks.Weightless():
        outline = build(name, num_classes=3)
    network = build(name, num_classes=3)
    shapes = [{key: value.shape for key, value in of.inner.state_dict().items()} for of in (outline, network)]
    assert shapes[0] == shapes[1]
    assert all(parameter.is_meta for parameter in outline.parameters())


def test_new_head_comes_from_torchs_random_state(tmp_path):
    store(small().inner.state_dict(), tmp_path, "vgg16_bn_narrow")
    heads = []
    for seed in (1, 1, 2):
        with runtime.seeded(seed):
            heads.append(build("vgg16_bn_narrow", "DEFAULT", 3, tmp_path).inner.classifier[-1].weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


# --- save and load ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BUILT, "mnasnet0_5", "regnet_y_400mf"])
def test_round_trip_keeps_every_logit(tmp_path, name):
    network = build(name, num_classes=7)
    networks.save(network, tmp_path / "folder" / "one.pt")
    again = networks.load(tmp_path / "folder" / "one.pt")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), again(x))
    assert again.name == name
    assert not any(module.training for module in again.modules())
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_round_trip_keeps_googlenets_transform(tmp_path):
    store(build("googlenet", num_classes=2).inner.state_dict(), tmp_path, "googlenet")
    network = build("googlenet", "DEFAULT", folder=tmp_path)
    networks.save(network, tmp_path / "one.pt")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(networks.load(tmp_path / "one.pt")(x), network(x))


def test_bytes_do_not_know_the_files_name(tmp_path):
    network = small()
    for name in ("one.pt", "other.pt"):
        networks.save(network, tmp_path / name)
    networks.save(copy.deepcopy(network).to(memory_format=torch.channels_last), tmp_path / "channels_last.pt")
    networks.save(networks.load(tmp_path / "one.pt"), tmp_path / "again.pt")
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 4
    assert len(set(contents.values())) == 1


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1000], lambda data: b"", lambda data: data.replace(b"PK", b"pk")]
)
def test_damaged_network_is_named(tmp_path, damage):
    path = tmp_path / "one.pt"
    networks.save(small(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"one\.pt is not a file of weights"):
        networks.load(path)


def test_missing_network_and_foreign_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.pt does not exist"):
        networks.load(tmp_path / "gone.pt")
    torch.save(small().inner.state_dict(), tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is not a network written by cxlib"):
        networks.load(tmp_path / "state.pt")
    content = {"name": "vgg16_bn_narrow", "options": {}, "preparation": None, "state_dict": {}}
    torch.save(content, tmp_path / "headless.pt")
    with pytest.raises(
        ValueError, match=r"headless\.pt does not fit vgg16_bn_narrow: there is no classifier\.2\.weight"
    ):
        networks.load(tmp_path / "headless.pt")


# --- hybrids ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid():
    with runtime.seeded(0):
        return build("vit_lite0", num_classes=5)


def test_a_hybrid_is_a_small_transformer_on_the_maps_of_its_trunk(hybrid, tmp_path):
    x = torch.rand(2, 3, 144, 144, generator=torch.Generator().manual_seed(0))
    logits = hybrid(x)
    assert logits.shape == (2, 5)
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    assert_close(hybrid(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in hybrid.modules())
    assert not any(parameter.requires_grad for parameter in hybrid.parameters())
    (maps,) = hybrid.inner.get_submodule(TRUNK)((x - hybrid.mean) / hybrid.std)
    assert maps.shape == (2, 112, 9, 9)
    assert (hybrid.mean.flatten().tolist(), hybrid.std.flatten().tolist()) == ([0.5] * 3, [0.5] * 3)
    assert networks.transform("vit_lite0")(photograph()).shape == (3, 144, 144)
    networks.save(hybrid, tmp_path / "one.pt")
    again = networks.load(tmp_path / "one.pt")
    assert torch.equal(again(x), logits)
    with pytest.raises(ValueError, match="name a layer"):
        explanation_layer(hybrid)


def test_weights_of_a_hybrid_are_its_trunks_and_the_rest_is_drawn(tmp_path):
    state = build("tf_efficientnet_lite0", num_classes=2).inner.state_dict()
    path = store(state, tmp_path, "tf_efficientnet_lite0")
    made = []
    for seed, weights_ in ((1, "DEFAULT"), (1, path.stem), (2, str(path))):
        with runtime.seeded(seed):
            made.append(build("vit_lite0", weights_, 3, tmp_path).inner.state_dict())
    inside = f"{TRUNK}."
    for one in made:
        trunk = {key.removeprefix(inside): value for key, value in one.items() if key.startswith(inside)}
        assert len(trunk) > 200
        assert_same_state(trunk, {key: state[key] for key in trunk})
    assert_same_state(made[0], made[1])
    assert not torch.equal(made[0]["head.weight"], made[2]["head.weight"])


def test_weights_that_do_not_fit_a_hybrids_trunk_are_one_line(tmp_path):
    torch.save(small().inner.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth' do not fit vit_lite0") as caught:
        build("vit_lite0", str(tmp_path / "other.pth"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 500, "a person reads this line"


def test_published_classes_are_torchvisions_and_timms():
    with torch.device("meta"):
        theirs, timms, of_birds = build("resnet18"), build("test_resnet.r160_in1k"), build("resnet10t", num_classes=7)
    assert networks.published_classes(theirs) == torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    told = networks.published_classes(timms)
    assert (len(told), told[1], told[998]) == (1000, "goldfish", "ear")
    assert networks.published_classes(of_birds) == []


def test_a_size_that_a_transformer_refuses_is_named():
    with torch.device("meta"):
        network, images = build("vit_b_32", num_classes=2), torch.empty(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"vit_b_32 refuses images of shape \(1, 3, 64, 64\): Wrong image height"):
        network(images)


@pytest.mark.parametrize(("name", "side"), [("alexnet", 16), ("googlenet", 8), ("inception_v3", 32)])
def test_a_size_that_a_convolutional_network_refuses_is_named(name, side):
    network = build(name, num_classes=2)
    for ask in (network, lambda images: taps.record(network, images, explanation_layer(network))):
        with pytest.raises(ValueError, match=rf"{name} refuses images of shape \(1, 3, {side}, {side}\): ") as caught:
            ask(torch.zeros(1, 3, side, side))
        assert "\n" not in str(caught.value)
