"""A probe is scikit-learn's logistic regression, at its optimum, and the same whatever the processor can do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression

from cxlib import networks, runtime
from cxlib.datasets import images
from cxlib.networks.build import last_layer
from cxlib.networks.weights import PACKAGES
from cxlib.synthbirds.species import generate
from cxlib.training import frozen, probe

# A tenth of this gradient is often out of reach, for the objective's own roundings.
PENALTY, GRADIENT = 0.01, 3e-8
#: The review's recipe.
RECIPE = yaml.safe_load((Path(__file__).parents[1] / "conf" / "recipe" / "probe.yaml").read_text())["options"]


def problem(n=120, d=7, n_classes=4, seed=0):
    """Features of several scales, far from zero, and labels that depend on them, not without doubt."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d)) * draw.uniform(0.3, 3, d) + draw.normal(size=d) * 3
    scores = (x - x.mean(0)) @ draw.normal(size=(d, n_classes)) / np.sqrt(d) + draw.gumbel(size=(n, n_classes))
    labels = scores.argmax(1)
    assert set(labels) == set(range(n_classes))
    return torch.from_numpy(x), labels


def softmax(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def cross_entropy(weight, bias, x, labels):
    return -np.log(softmax(x @ weight.T + bias)[np.arange(len(x)), labels]).mean()


def probabilities(fitted, x):
    return softmax(x.double().numpy() @ fitted.weight.T + fitted.bias)


# Fewer features than images, and more: then they lie in a space of as many dimensions as there are images.
@pytest.mark.parametrize(("n", "d", "n_classes"), [(120, 7, 4), (30, 50, 3), (40, 40, 5)])
@pytest.mark.parametrize("penalty", [0.3, 0.003])
def test_a_probe_is_the_logistic_regression_of_scikit_learn(n, d, n_classes, penalty):
    x, labels = problem(n, d, n_classes)
    fitted = probe.fit(x, labels, n_classes, penalty, GRADIENT)
    theirs = LogisticRegression(C=1 / (n * penalty), solver="lbfgs", tol=1e-12, max_iter=100_000)
    theirs.fit(x.numpy(), labels)
    seen = torch.cat([x, x.flip(0)[:10] + 0.5])  # and some that it was not fitted to
    np.testing.assert_allclose(probabilities(fitted, seen), theirs.predict_proba(seen.numpy()), rtol=0, atol=1e-5)
    # Else the problem would be too easy to tell two solutions apart.
    assert 0.02 < probabilities(fitted, x).max(1).mean() - 1 / n_classes < 1 - 1 / n_classes - 1e-3


@pytest.mark.parametrize(("n", "d"), [(60, 4), (10, 15)])
def test_the_gradient_is_zero_at_the_optimum(n, d):
    """By central differences of the objective, written out, in the coordinates of the features."""
    x, labels = problem(n, d, 3)
    fitted = probe.fit(x, labels, 3, PENALTY, GRADIENT)
    flat = np.concatenate([fitted.weight.ravel(), fitted.bias])

    def objective(at):
        weight, bias = at[: 3 * d].reshape(3, d), at[3 * d :]
        return cross_entropy(weight, bias, x.numpy(), labels) + PENALTY / 2 * (weight**2).sum()

    def slope(at):
        steps = 1e-5 * np.eye(len(at))
        return np.array([(objective(at + step) - objective(at - step)) / 2e-5 for step in steps])

    assert np.abs(slope(flat)).max() < 1e-6
    assert np.abs(slope(flat + 1e-3 * np.sign(flat))).max() > 1e-4


def test_a_probe_tells_its_loss_and_its_weights_sum_to_zero_over_the_classes():
    x, labels = problem()
    fitted = probe.fit(x, labels, 4, PENALTY, GRADIENT)
    assert (fitted.weight.shape, fitted.bias.shape) == ((4, 7), (4,))
    assert fitted.weight.dtype == fitted.bias.dtype == np.float64
    np.testing.assert_allclose(fitted.weight.sum(0), 0, atol=1e-10)
    assert fitted.bias.sum() == pytest.approx(0, abs=1e-9)
    assert fitted.loss == pytest.approx(cross_entropy(fitted.weight, fitted.bias, x.numpy(), labels), rel=1e-10)


def test_the_layer_of_a_probe_gives_its_probabilities():
    x, labels = problem()
    fitted = probe.fit(x, labels, 4, PENALTY, GRADIENT)
    layer = fitted.layer()
    assert layer.weight.dtype == layer.bias.dtype == torch.float32
    p = layer(x.float()).softmax(1).detach()
    np.testing.assert_allclose(p, probabilities(fitted, x), rtol=0, atol=1e-5)


def test_a_class_without_images_is_improbable():
    x, labels = problem()
    p = probabilities(probe.fit(x, labels, 5, PENALTY, 1e-7), x)
    assert p.shape == (120, 5)
    assert p[:, 4].max() < 1e-3


def test_float32_features_are_solved_in_float64():
    x, labels = problem()
    one, other = (probe.fit(features, labels, 4, PENALTY, GRADIENT) for features in (x.float(), x.float().double()))
    assert np.array_equal(one.weight, other.weight)
    assert np.array_equal(one.bias, other.bias)


def test_the_order_of_the_images_does_not_matter():
    x, labels = problem()
    order = np.random.default_rng(1).permutation(len(x))
    one, other = probe.fit(x, labels, 4, PENALTY, GRADIENT), probe.fit(x[order], labels[order], 4, PENALTY, GRADIENT)
    np.testing.assert_allclose(other.weight, one.weight, rtol=0, atol=1e-5)
    np.testing.assert_allclose(other.bias, one.bias, rtol=0, atol=1e-5)


def refused(*args):
    with pytest.raises(ValueError) as caught:
        probe.fit(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_a_penalty_that_leaves_many_optima_is_refused(penalty):
    assert f"above 0, so that it has one optimum, not {penalty}" in refused(*problem(), 4, penalty, GRADIENT)


def test_feature_maps_are_refused():
    x, labels = problem()
    assert "(N, D), got (120, 7, 1, 1): fine-tune" in refused(x[..., None, None], labels, 4, PENALTY, GRADIENT)


def test_a_gradient_that_is_not_reached_is_named(monkeypatch):
    # Below all rounding, so that the solver gives up; and within the steps that are allowed.
    assert "above 1.0e-300: allow a larger one" in refused(*problem(), 4, PENALTY, 1e-300)
    monkeypatch.setattr(probe, "LIMIT", 2)
    assert "above 3.0e-08: allow a larger one" in refused(*problem(), 4, PENALTY, GRADIENT)


# --- processors -------------------------------------------------------------------------------------------------

PLAIN = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
WIDE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
NETWORK = "tf_efficientnet_lite0"


def probed(birds, out):
    """Features of painted birds behind the published network, and a probe's probabilities, in this process."""
    torch.set_num_threads(1)
    network = networks.build(NETWORK, "DEFAULT")
    sides = [images.read(birds, side) for side in ("train", "test")]
    transform = images.preprocessing(160, crop=False)
    # Contiguous: without AVX oneDNN takes its time over channels last.
    loaded = [images.load(side, range(len(side)), transform)[0].contiguous() for side in sides]
    with frozen.without(network, last_layer(network.inner)), torch.no_grad():
        train, test = (network(x) for x in loaded)
    fitted = probe.fit(train, np.array(sides[0].labels), len(sides[0].classes), **RECIPE)
    p = [probabilities(fitted, x) for x in (train, test)]
    can = torch.backends.cpu.get_cpu_capability()
    np.savez(out, features=train, p=np.concatenate(p), loss=fitted.loss, can=can)


@pytest.mark.skipif(not runtime.packaged(PACKAGES[NETWORK]), reason=f"{PACKAGES[NETWORK]} is not installed")
def test_a_probe_is_the_same_without_the_processors_wide_instructions(tmp_path):
    """Whoever has another processor gets the same numbers: features differ by roundings, and the head by little more.

    How much more depends on the gradient at which the solver stops, over the penalty: ten times the recipe's would
    move these probabilities by 2e-4.
    """
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor, or its settings, have no AVX2 to compare with")
    birds = tmp_path / "birds"
    generate(birds, species_per_family=2, train_per_species=8, test_per_species=2, image_size=160)
    found = []
    for name, chosen in (("plain", PLAIN), ("wide", WIDE)):
        out = tmp_path / f"{name}.npz"
        environment = os.environ | chosen | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, __file__, birds, out], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(np.load(out))
    plain, wide = found
    assert (str(plain["can"]), str(wide["can"])) == ("DEFAULT", "AVX2")
    assert plain["features"].shape == (64, 1280)
    assert not np.array_equal(plain["features"], wide["features"]), "the instructions are the same"
    assert plain["p"].shape == (64 + 16, 8)
    assert plain["p"].max(1).mean() > 0.3, "a head that knows nothing is the same everywhere"
    np.testing.assert_allclose(plain["p"], wide["p"], rtol=0, atol=1e-4)
    assert float(plain["loss"]) == pytest.approx(float(wide["loss"]), abs=1e-4)


if __name__ == "__main__":
    probed(Path(sys.argv[1]), Path(sys.argv[2]))
