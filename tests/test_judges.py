"""The leaderboard's judges, each against what the library says of one map at a time."""

import pytest
import torch

from cxlib.explainers import explain
from cxlib.metrics import area, insertion_deletion, measure, model_randomisation, passes
from cxlib.review import judges

EXPLAINERS, CONTRASTS, LAYER = ["gradcam++", "linear_approximation", "gradient"], ["original", "weighted"], "features.4"


@pytest.fixture
def regions():
    return torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.3


@pytest.fixture
def judged(flat, images, regions):
    leading = flat(images).topk(2).indices
    return leading, judges.judge(flat, images, leading, regions, EXPLAINERS, CONTRASTS, LAYER, 4, 7)


def at(array, image, explainer, contrast, *rest):
    index = [EXPLAINERS.index(explainer), CONTRASTS.index(contrast)]
    return array[(image, *index, *rest)].item()


@pytest.mark.parametrize("explainer", EXPLAINERS)
@pytest.mark.parametrize("contrast", CONTRASTS)
def test_every_number_is_that_of_the_map_alone(flat, images, regions, judged, explainer, contrast):
    leading, found = judged
    for i in range(4):
        image, pair = images[[i]], leading[[i]]
        maps = explain(flat, image, pair, explainer, contrast, LAYER)
        for o, order in enumerate((maps[:, 0], torch.roll(maps[:, 0], (8, 8), (1, 2)))):
            ways = insertion_deletion(flat, image, order, pair[:, 0], pair[:, 1], steps=4)[1:]
            for w, curve in enumerate(ways):
                for f, followed in enumerate((curve, curve.sigmoid())):
                    assert at(found.areas, i, explainer, contrast, o, w, f) == pytest.approx(area(followed).item())
        share = measure(maps, regions[[i]]).share[0]
        torch.testing.assert_close(found.share[i, EXPLAINERS.index(explainer), CONTRASTS.index(contrast)], share)
        alike = torch.corrcoef(maps[0].flatten(1))[0, 1].item()
        assert at(found.alike, i, explainer, contrast) == pytest.approx(alike)


def test_likeness_is_that_of_networks_with_a_new_head_and_with_all_new(flat, images, judged):
    leading, found = judged
    for e, explainer in enumerate(EXPLAINERS):
        asked = lambda *given, name=explainer: explain(*given, leading[:, 0], name, CONTRASTS, LAYER)  # noqa: E731
        whole = model_randomisation(flat, images, asked, 7, ["head", "features.0"], similarities=["rank_correlation"])
        assert whole.layers == ["head", "features.0"]
        expected = whole.similarities["rank_correlation"].permute(2, 1, 0)
        torch.testing.assert_close(found.randomised[:, e], expected)
        assert torch.equal(found.silent[:, e], whole.silent.permute(2, 1, 0))


def test_a_batch_gives_what_single_images_give(flat, images, regions, judged):
    leading, found = judged
    for i in range(4):
        one = judges.judge(flat, images[[i]], leading[[i]], regions[[i]], EXPLAINERS, CONTRASTS, LAYER, steps=4, seed=7)
        for name, values in one._asdict().items():
            torch.testing.assert_close(values[0], getattr(found, name)[i], msg=name)


def test_costs_are_passes_of_one_map(flat):
    network = flat.float()
    found = judges.costs(network, 16, EXPLAINERS, CONTRASTS, LAYER)
    image, target = torch.rand(1, 3, 16, 16), torch.tensor([1])
    for e, explainer in enumerate(EXPLAINERS):
        of_one = passes(network, image, lambda *given, name=explainer: explain(*given, target, name, "max", LAYER))
        assert found[e].tolist() == [of_one, of_one]
    assert found[EXPLAINERS.index("gradient"), 0] == 2
