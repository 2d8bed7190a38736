"""Training learns, is a function of the seed alone, and touches nothing but the network."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import training_runs
from torch import nn
from torch.testing import assert_close
from torchvision.transforms import InterpolationMode, v2

from cxlib import networks, runtime
from cxlib.datasets import images
from cxlib.runs import Ranks
from cxlib.synthbirds.species import generate
from cxlib.training import fine_tune as training
from cxlib.training.fine_tune import (
    AUGMENTATIONS,
    BATCH_NORM,
    OPTIMISERS,
    SCHEDULES,
    Augmented,
    Kept,
    Recipe,
    fine_tune,
    predict,
)

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
SIZE = 32
RECIPE = Recipe(2, 8, "sgd", 0.01, 0.9, 5e-4, "constant", 0.0, "light", "learned", "float32")


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    generate(folder, species_per_family=2, train_per_species=2, test_per_species=1, image_size=SIZE, ambiguity=0)
    return images.read(folder, "train")


def fresh(name="vgg16_bn_narrow"):
    with runtime.seeded(0):
        return networks.build(name, num_classes=8)


def recipe(**changes):
    return Recipe(**{**vars(RECIPE), **changes})


def tune(network, samples, recipe=RECIPE, workers=0, seed=0, *how, **more):
    """Train on augmented images."""
    return fine_tune(network, Augmented(samples, recipe.augmentation, SIZE, seed), recipe, workers, seed, *how, **more)


def train(samples, recipe, name="vgg16_bn_narrow", workers=0, seed=0):
    """A fresh network after training, and its losses."""
    network = fresh(name)
    return network, [epoch.loss for epoch in tune(network, samples, recipe, workers, seed)]


def augmented(samples, name, size, epoch=0, seed=0):
    """All images of an epoch as a training sees them, and their labels."""
    images = Augmented(samples, name, size, seed)
    return images.load([(epoch, index) for index in range(len(samples))])


def assert_same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


def statistics(network):
    return {key: value.clone() for key, value in network.state_dict().items() if "running" in key or "num_b" in key}


def test_training_learns(birds):
    learning = recipe(epochs=15, schedule="one_cycle", learning_rate=0.05)
    network, losses = train(birds, learning, name="test_resnet.r160_in1k")
    assert len(losses) == 15
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_network_is_in_eval_mode_after_every_epoch(birds):
    network = fresh()
    for _ in tune(network, birds):
        assert not any(module.training for module in network.modules())


def test_loss_is_the_mean_over_images_of_the_cross_entropy(birds):
    """With a learning rate of zero and frozen statistics every image meets the same network."""
    still = recipe(epochs=1, learning_rate=0.0, momentum=0.0, weight_decay=0.0, batch_norm="frozen", batch_size=6)
    network, (loss,) = train(birds, still)  # 16 images: batches of 6, 6 and 4
    x, labels = augmented(birds, "light", SIZE)
    assert labels.tolist() == list(birds.labels)
    expected = nn.functional.cross_entropy(network(x), labels)
    assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["vgg16_bn_narrow", "squeezenet1_1"])  # the second one has dropout
def test_weights_are_a_function_of_the_seed_whatever_the_workers(birds, name):
    network, losses = train(birds, RECIPE, name)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again, losses_again = train(birds, RECIPE, name)
    assert losses == losses_again
    assert_same_weights(network, again)
    assert_same_weights(network, train(birds, RECIPE, name, workers=2)[0])
    other, _ = train(birds, RECIPE, name, seed=1)
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters()))


@pytest.mark.parametrize("workers", [0, 2])
def test_callers_random_state_is_untouched(birds, workers):
    network = fresh("squeezenet1_1")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for _ in tune(network, birds, recipe(epochs=1), workers):
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_two_draws_of_a_training_share_a_stream(birds, monkeypatch):
    """Neither a step's dropout and an image's augmentation, nor either and the layers' initial weights."""
    streams, seeded = [], runtime.seeded

    @contextmanager
    def spied(*seed, device="cpu"):
        with seeded(*seed, device=device):
            streams.append(torch.initial_seed())
            yield

    monkeypatch.setattr(runtime, "seeded", spied)
    train(birds, recipe(epochs=2, batch_size=4), seed=0)  # `fresh` draws its weights from seed 0
    assert len(set(streams)) == len(streams) == 1 + 2 * (16 + 4)


def test_every_epoch_sees_every_image_once_in_another_order():
    orders = [training._epoch_order(10, 4, seed=0, epoch=epoch) for epoch in (0, 1)]
    for epoch, order in enumerate(orders):
        assert [len(batch) for batch in order] == [4, 4, 2]
        assert sorted(item for batch in order for item in batch) == [(epoch, index) for index in range(10)]
    assert [i for batch in orders[0] for _, i in batch] != [i for batch in orders[1] for _, i in batch]


def test_last_batch_of_a_single_image_is_left_out(birds):
    """Batch norm has no statistics of one image; sixteen images in batches of five leave one."""
    _, losses = train(birds, recipe(epochs=1, batch_size=5))
    assert np.isfinite(losses).all()


# --- batch norm -------------------------------------------------------------------------------------------------


def test_frozen_batch_norm_keeps_its_statistics_and_learns_the_rest(birds):
    network = fresh()
    before, weights = statistics(network), [parameter.clone() for parameter in network.parameters()]
    list(tune(network, birds, recipe(batch_norm="frozen")))
    after = statistics(network)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert sum(not torch.equal(a, b) for a, b in zip(weights, network.parameters())) > 40


@pytest.mark.parametrize("batch_norm", ["learned", "fast"])
def test_other_batch_norm_changes_its_statistics(birds, batch_norm):
    before = statistics(fresh())
    network, _ = train(birds, recipe(epochs=1, batch_norm=batch_norm))
    after = statistics(network)
    assert all(not torch.equal(after[key], before[key]) for key in before)
    assert after["inner.features.1.num_batches_tracked"] == 2


@pytest.mark.parametrize(("batch_norm", "momentum"), [("learned", 0.01), ("fast", 0.1)])
def test_fast_batch_norm_has_momentum_one_tenth(birds, batch_norm, momentum):
    """MobileNet v3's own is 0.01."""
    network, _ = train(birds, recipe(epochs=1, batch_norm=batch_norm), "mobilenet_v3_small")
    found = {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    assert found == {momentum}


# --- schedules --------------------------------------------------------------------------------------------------


def test_constant_schedule_is_one():
    assert {SCHEDULES["constant"](done) for done in np.linspace(0.01, 1, 50)} == {1.0}


def test_one_cycle_rises_to_its_peak_at_a_quarter_and_ends_at_zero():
    done = np.linspace(0.01, 1, 100)
    factors = np.array([SCHEDULES["one_cycle"](share) for share in done])
    assert factors[0] == pytest.approx(0.04)
    assert done[factors.argmax()] == pytest.approx(0.25)
    assert factors.max() == pytest.approx(1)
    assert factors[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(factors[:25]) > 0).all()
    assert (np.diff(factors[24:]) < 0).all()


def test_warm_up_rises_in_a_line_to_one_and_stays():
    assert [SCHEDULES["warm_up"](done) for done in (0.01, 0.05, 0.1, 0.5, 1)] == pytest.approx([0.1, 0.5, 1, 1, 1])


def test_clipped_gradient_has_the_norm_asked_for(birds):
    """Without momentum and decay a step is the learning rate times the gradient; the second starts elsewhere."""
    plain = recipe(epochs=1, batch_size=16, learning_rate=0.01, momentum=0.0, weight_decay=0.0)
    before = torch.cat([p.flatten() for p in fresh().parameters()])
    moved = {}
    for clip in (0.0, 0.5, 1e6):
        network, _ = train(birds, Recipe(**{**vars(plain), "clip": clip}))
        moved[clip] = torch.cat([p.flatten() for p in network.parameters()]) - before
    assert moved[0.0].norm() > 0.01  # a gradient of norm above one
    assert moved[0.5].norm().item() == pytest.approx(0.01 * 0.5, rel=1e-3)
    assert_close(moved[0.5] / moved[0.5].norm(), moved[0.0] / moved[0.0].norm(), rtol=0, atol=1e-4)
    assert torch.equal(moved[1e6], moved[0.0])


def test_schedule_scales_the_learning_rate_of_every_step(birds, monkeypatch):
    done = []
    monkeypatch.setitem(SCHEDULES, "constant", lambda share: done.append(share) or 0.0)
    network, _ = train(birds, RECIPE)  # two epochs of two steps, each with factor 0
    assert done == [0.25, 0.5, 0.75, 1.0]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), fresh().parameters()))


# --- optimisers -------------------------------------------------------------------------------------------------


def steps_by_hand(optimiser, n_steps, x, labels, weight, rate, momentum, decay):
    """Softmax regression without bias on a whole batch, in numpy: the gradient and both updates, written out."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step in range(1, n_steps + 1):
        p = np.exp(x @ weight.T)
        p /= p.sum(1, keepdims=True)
        gradient = (p - np.eye(len(weight))[labels]).T @ x / len(x)
        if optimiser == "sgd":  # decay is a part of the gradient, and of the momentum
            gradient = gradient + decay * weight
            first = momentum * first + gradient
            weight = weight - rate * first
        else:  # decay is apart; the second moment's beta is 0.999
            first = momentum * first + (1 - momentum) * gradient
            second = 0.999 * second + 0.001 * gradient**2
            moved = first / (1 - momentum**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            weight = weight - rate * decay * weight - rate * moved
    return weight


def vectors():
    """Twelve images of 2 x 1 x 1 features, and labels of three classes."""
    draw = np.random.default_rng(0)
    return draw.normal(size=(12, 2)).astype(np.float32), draw.integers(0, 3, 12)


def linear():
    with runtime.seeded(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_an_optimiser_takes_the_published_steps(optimiser):
    x, labels = vectors()
    network, kept = linear(), Kept(torch.from_numpy(x)[..., None, None], labels)
    begun = network[1].weight.detach().numpy().astype(np.float64)
    how = recipe(epochs=5, batch_size=12, optimiser=optimiser, learning_rate=0.1, momentum=0.8, weight_decay=0.3)
    losses = [epoch.loss for epoch in fine_tune(network, kept, how, 0, 0)]
    expected = steps_by_hand(optimiser, 5, x.astype(np.float64), labels, begun, 0.1, 0.8, 0.3)
    np.testing.assert_allclose(network[1].weight, expected, rtol=0, atol=1e-5)
    assert np.abs(expected - begun).max() > 0.1
    log_p = x @ begun.T - np.log(np.exp(x @ begun.T).sum(1, keepdims=True))
    assert losses[0] == pytest.approx(-log_p[np.arange(12), labels].mean(), rel=1e-5)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_checkpoint_keeps_what_the_optimiser_remembers(tmp_path, optimiser):
    x, labels = vectors()
    kept, how = Kept(torch.from_numpy(x)[..., None, None], labels), recipe(optimiser=optimiser, epochs=4)
    whole, begun, resumed = linear(), linear(), linear()
    losses = list(fine_tune(whole, kept, how, 0, 0, float))
    first = fine_tune(begun, kept, how, 0, 0, float, folder=tmp_path)
    next(first), next(first), first.close()
    assert list(fine_tune(resumed, kept, how, 0, 0, float, folder=tmp_path)) == losses
    assert_same_weights(resumed, whole)
    assert not torch.equal(begun[1].weight, whole[1].weight)


# --- kept features ----------------------------------------------------------------------------------------------


def test_kept_features_are_given_with_their_labels_in_every_epoch():
    maps = torch.arange(5.0)[:, None, None, None].expand(5, 2, 3, 3)
    kept = Kept(maps, [4, 3, 2, 1, 0])
    assert len(kept) == 5
    for epoch in (0, 7):
        x, labels = kept.load([(epoch, 3), (epoch, 0)])
        assert torch.equal(x, torch.tensor([3.0, 0.0])[:, None, None, None].expand(2, 2, 3, 3))
        assert (labels.tolist(), labels.dtype) == ([1, 4], torch.int64)


def test_a_share_without_kept_features_is_a_batch_of_none():
    x, labels = Kept(torch.zeros(5, 2, 3, 3), [0] * 5).load([])
    assert (x.shape, labels.shape, labels.dtype) == ((0, 2, 3, 3), (0,), torch.int64)


@pytest.mark.parametrize("n_images", [0, 1])
def test_a_training_without_two_images_is_refused(n_images):
    with pytest.raises(ValueError, match=f"at least two images, there are {n_images}"):
        list(fine_tune(linear(), Kept(torch.zeros(n_images, 2, 1, 1), [0] * n_images), RECIPE, 0, 0))


# --- failures ---------------------------------------------------------------------------------------------------


def test_diverging_training_names_the_learning_rate(birds):
    with pytest.raises(FloatingPointError, match=r"1e\+20"):
        train(birds, recipe(learning_rate=1e20))


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_image_is_named_in_one_line_whoever_reads_it(birds, tmp_path, workers):
    """DataLoader puts a worker's whole traceback into the message."""
    (tmp_path / "cut.jpg").write_bytes(birds.paths[3].read_bytes()[:-500])
    samples = replace(birds, paths=(*birds.paths[:3], tmp_path / "cut.jpg", *birds.paths[4:]))
    with pytest.raises(ValueError) as caught:
        train(samples, RECIPE, workers=workers)
    assert str(caught.value).startswith(f"{tmp_path / 'cut.jpg'} cannot be decoded")
    assert "\n" not in str(caught.value)


def test_divergence_in_the_very_last_step_shows_in_the_prediction(birds):
    """The loss before the step is finite, the outputs behind it are not."""
    network, losses = train(birds, recipe(epochs=1, batch_size=16, learning_rate=1e38))
    assert np.isfinite(losses).all()
    x, _ = images.load(birds, range(2), images.preprocessing(SIZE, crop=False))
    with pytest.raises(FloatingPointError, match="not finite"):
        predict(network, [x])


@pytest.mark.parametrize("field", ["optimiser", "schedule", "augmentation", "batch_norm", "precision"])
def test_unknown_name_lists_the_choices(birds, field):
    known = {
        "optimiser": OPTIMISERS,
        "schedule": SCHEDULES,
        "augmentation": AUGMENTATIONS,
        "batch_norm": BATCH_NORM,
        "precision": runtime.PRECISIONS,
    }[field]
    with pytest.raises(ValueError, match=f"'nonsense'.*{', '.join(known)}"):
        train(birds, recipe(**{field: "nonsense"}))


def sane(state):
    return all(value.abs().max() < 1e3 for value in state.values())


def test_diverging_training_keeps_the_last_good_state_and_names_its_file(birds, tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEDULES, "constant", lambda done: 1e25 if done > 0.6 else 1.0)  # from 2.4 epochs on
    network = fresh()
    with pytest.raises(FloatingPointError, match=r"epoch 3: .*after 2 epochs and 1 steps.*checkpoint\.pt"):
        list(tune(network, birds, recipe(epochs=4, batch_size=6), folder=tmp_path, every=0))
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (len(kept["epochs"]), kept["step"]) == (2, 1)
    assert sane(kept["network"])
    assert not sane(network.state_dict())


def test_divergence_that_only_the_test_shows_keeps_the_epoch_before(birds, tmp_path):
    def measure(n_epochs):
        if n_epochs == 2:
            raise FloatingPointError("the network's outputs are not finite")
        return 0.5

    with pytest.raises(FloatingPointError, match=r"not finite; the state after 1 epochs and 0 steps is kept in"):
        list(tune(fresh(), birds, measure=measure, folder=tmp_path))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epochs"][0][1] == 0.5


def test_code_in_a_checkpoint_is_never_run(birds, tmp_path, trap):
    torch.save({"network": trap, "epochs": [], "step": 0}, tmp_path / "checkpoint.pt")
    list(tune(fresh(), birds, folder=tmp_path))
    assert not trap.has_sprung()


def test_a_damaged_checkpoint_is_none(birds, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half of a file")
    one, other = fresh(), fresh()
    assert list(tune(one, birds, folder=tmp_path)) == list(tune(other, birds))
    assert_same_weights(one, other)


# --- interruptions and ranks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs_of_their_own(birds, tmp_path_factory):
    """Folder with the weights of trainings in other processes, and where the killed one was killed."""
    out = tmp_path_factory.mktemp("runs")
    script = [sys.executable, Path(__file__).with_name("training_runs.py")]
    data = birds.paths[0].parents[2]
    done = subprocess.run([*script, data, out], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_training_that_is_killed_at_any_step_ends_with_the_same_bytes(runs_of_their_own):
    out, places = runs_of_their_own
    assert len(places) >= 3
    assert any(step for _, step in places), "no kill within an epoch"
    assert (out / "killed.pt").read_bytes() == (out / "whole.pt").read_bytes()
    assert not (out / "killed").exists()


@pytest.mark.parametrize("name", ["shared", "taken_over"])
def test_three_ranks_train_the_network_that_one_trains(runs_of_their_own, name):
    """Batch norm and dropout included, and with a rank that has no image of the last batch."""
    out, _ = runs_of_their_own
    one, three = (torch.load(out / f"{which}.pt", weights_only=True) for which in ("whole", name))
    assert_close(three["network"], one["network"], rtol=1e-3, atol=1e-4)
    assert_close(torch.tensor(three["epochs"]), torch.tensor(one["epochs"]), rtol=1e-4, atol=0)
    before = training_runs.small().state_dict()
    assert (one["network"]["0.weight"] - before["0.weight"]).abs().max() > 0.01  # a hundred times what may differ


OPTIONS = {
    "architecture": "mobilenet_v3_small", "weights": "random", "weights_path": "none", "image_size": 32, "epochs": 2,
    "frozen": "none", "batch_size": 7, "optimiser": "sgd",
    "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "one_cycle", "clip": 1,
    "augmentation": "light", "batch_norm": "fast", "precision": "float32", "seed": 0, "out": "network.pt",
    "report": "report.npz", "curves": "curves",
}  # fmt: skip


def stage(folder, birds, processes=1):
    """The stage itself as a process in a folder of its own, which may share its work among others."""
    folder.mkdir(exist_ok=True)
    options = OPTIONS | {"data": birds.paths[0].parents[2]}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, ROOT / "stages" / "train.py", "fine_tune", "--no-crop", *words]
    machine = {"DEVICE": "cpu", "THREADS": 1, "WORKERS": 0, "PROCESSES": processes}
    environment = ENVIRONMENT | {f"CXLIB_{name}": str(value) for name, value in machine.items()}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def succeed(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stage_goes_on_after_a_kill_and_shares_its_work_among_ranks(birds, tmp_path):
    whole, killed = (stage(tmp_path / name, birds) for name in ("whole", "killed"))
    while killed.poll() is None and not list(tmp_path.glob("killed/.resume/train/*/test_1/*.npz")):
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "network.pt").exists()
    again = stage(tmp_path / "killed", birds)
    printed = succeed(whole)
    shared = stage(tmp_path / "shared", birds, processes=2)
    assert succeed(again) == printed
    expected = files(tmp_path / "whole")
    assert expected.keys() >= {"network.pt", "report.npz"}
    assert not any(name.startswith(".resume") for name in expected)
    assert files(tmp_path / "killed") == expected

    assert succeed(shared).count("test accuracy") == 1
    assert files(tmp_path / "shared").keys() == expected.keys()
    with np.load(tmp_path / "whole" / "report.npz") as one, np.load(tmp_path / "shared" / "report.npz") as two:
        assert two.keys() == one.keys() == {
            "probabilities", "labels", "losses", "accuracies", "classes", "computed_by",
        }  # fmt: skip
        assert one["classes"].tolist() == list(birds.classes)
        for name in ("classes", "computed_by"):
            assert np.array_equal(two[name], one[name])
        for name in one.keys() - {"classes", "computed_by"}:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4)


# --- augmentation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [32, 20])
def test_augmented_images_keep_shape_and_range(birds, name, size):
    for epoch in range(3):
        x, labels = augmented(birds, name, size, epoch)
        assert (x.shape, x.dtype, labels.dtype) == ((len(birds), 3, size, size), torch.float32, torch.int64)
        assert x.min() >= 0
        assert 0.5 < x.max() <= 1


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.keys() - {"none"}))
def test_augmentation_is_a_function_of_seed_epoch_and_image(birds, name):
    first, _ = augmented(birds, name, SIZE)
    torch.rand(7)
    assert torch.equal(augmented(birds, name, SIZE)[0], first)
    for other in (augmented(birds, name, SIZE, epoch=1), augmented(birds, name, SIZE, seed=1)):
        assert all(not torch.equal(image, before) for image, before in zip(other[0], first))
    alone, label = Augmented(birds, name, SIZE, seed=0).load([(0, 3)])
    assert torch.equal(alone, first[3:4])
    assert label.tolist() == [birds.labels[3]]


def test_no_augmentation_is_the_image_as_it_is_tested_in_every_epoch(birds):
    x, labels = augmented(birds, "none", 20)
    expected, _ = images.load(birds, range(len(birds)), images.preprocessing(20, crop=False))
    assert torch.equal(x, expected)
    assert labels.tolist() == list(birds.labels)
    assert torch.equal(augmented(birds, "none", 20, epoch=3, seed=7)[0], x)


def test_a_share_without_images_is_a_batch_of_none(birds):
    """As that of the last rank, when the last batch has fewer images than there are ranks."""
    x, labels = Augmented(birds, "light", SIZE, seed=0).load([])
    assert (x.shape, x.dtype) == ((0, 3, SIZE, SIZE), torch.float32)
    assert (labels.shape, labels.dtype) == ((0,), torch.int64)


def test_published_augmentation_has_the_reviews_settings():
    kinds = [
        v2.RandomHorizontalFlip,
        v2.RandomVerticalFlip,
        v2.RandomRotation,
        v2.ColorJitter,
        v2.RandomAffine,
        v2.RandomResizedCrop,
        v2.RandomPerspective,
        v2.RandomGrayscale,
        v2.RandomApply,
    ]
    steps = AUGMENTATIONS["published"](224)
    assert [type(step) for step in steps] == kinds
    horizontal, vertical, rotation, jitter, affine, crop, perspective, grayscale, apply = steps
    assert horizontal.p == vertical.p == 0.5
    assert list(rotation.degrees) == [-30, 30]
    assert [list(jitter.brightness), list(jitter.contrast), list(jitter.saturation)] == [[0.8, 1.2]] * 3
    assert list(jitter.hue) == [-0.1, 0.1]
    assert (list(affine.degrees), list(affine.translate)) == ([0, 0], [0.1, 0.1])
    assert (list(crop.size), crop.scale, crop.ratio) == ([224, 224], (0.7, 1.0), (0.75, 4 / 3))
    assert InterpolationMode(crop.interpolation) == InterpolationMode.BILINEAR
    assert (perspective.distortion_scale, perspective.p) == (0.2, 0.5)
    assert InterpolationMode(perspective.interpolation) == InterpolationMode.BICUBIC
    assert grayscale.p == apply.p == 0.2
    (blur,) = apply.transforms
    assert (list(blur.kernel_size), list(blur.sigma)) == ([3, 3], [0.1, 2.0])


# --- testing ----------------------------------------------------------------------------------------------------


def test_predicted_probabilities_are_the_softmax_of_the_logits(birds):
    network = fresh()
    transform = images.preprocessing(SIZE, crop=False)
    x, _ = images.load(birds, range(5), transform)
    p = predict(network, x.split(2))
    assert (p.shape, p.dtype) == ((5, 8), torch.float64)
    assert_close(p.sum(1), torch.ones(5, dtype=torch.float64))
    assert_close(p, network(x).double().softmax(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_gives_every_images_probabilities_whoever_decodes_them(birds, tmp_path, workers):
    """In the images' order, and once: what was computed stays until it is asked for after one more epoch."""
    network, transform = fresh(), images.preprocessing(SIZE, crop=False)
    p = training.test(network, birds, transform, 5, Ranks(), tmp_path, workers, 1)
    x, _ = images.load(birds, range(len(birds)), transform)
    np.testing.assert_allclose(p, network(x).double().softmax(-1), rtol=1e-5, atol=1e-6)
    again = training.test(fresh("squeezenet1_1"), birds, transform, 5, Ranks(), tmp_path, workers, 1)
    assert np.array_equal(again, p)
    other = training.test(fresh("squeezenet1_1"), birds, transform, 5, Ranks(), tmp_path, workers, 2)
    assert not np.allclose(other, p)
    assert [path.name for path in tmp_path.iterdir()] == ["test_2"]
