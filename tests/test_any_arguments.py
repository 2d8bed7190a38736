"""Whatever the public functions are given: a finite result of the right shape, or one line that says what is wrong."""

import torch
from generated import cases, outcome
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cxlib import explain
from cxlib.contrasts import CONTRASTS, NORMALISED, cotangent
from cxlib.explainers import EXPLAINERS
from cxlib.metrics import localisation, masking
from cxlib.review.perturbation import sign_perturb

REAL = torch.float16, torch.bfloat16, torch.float32, torch.float64
WHOLE = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64
OTHER = torch.bool, torch.complex64, torch.uint16
ANY = st.sampled_from([*3 * REAL, *WHOLE, *OTHER])
#: Numbers that are too large for half precision, or none; seldom.
NUMBERS = st.floats(-5, 5, width=16) | st.sampled_from([0.0, 1.0, 3e38, float("nan"), float("inf"), -float("inf")])
PROPER = st.floats(-5, 5, width=16)
NAMES = st.sampled_from([*CONTRASTS, NORMALISED, "nonsense", ""])


def drawn(shape, dtypes=ANY, numbers=PROPER | NUMBERS):
    """Tensors of a shape, whose few distinct numbers are drawn and repeated."""

    def filled(few, dtype):
        size = torch.Size(shape).numel()
        values = torch.tensor((few * size)[:size], dtype=torch.float64).reshape(shape)
        return values.nan_to_num(7, 7, -7).to(dtype) if dtype not in REAL else values.to(dtype)

    return st.builds(filled, st.lists(numbers, min_size=1, max_size=12), dtypes)


@st.composite
def indices(draw, n_images, n_classes, wrong=True):
    """Targets (B,) or (B, T), of any whole type; or with one index, a dimension or a type that is wrong."""
    shape = draw(st.sampled_from([(n_images,), (n_images, 2), (n_images, 1)]))
    low, high, types = 0, n_classes - 1, st.sampled_from(WHOLE)
    if wrong and draw(st.integers(0, 3)) == 0:
        shape = draw(st.sampled_from([shape, (n_images + 1,), (), (n_images, 2, 2), (n_images, 0), (0,)]))
        low, high, types = -3, n_classes + 2, ANY
    return draw(drawn(shape, types, st.integers(low, high)))


class Network(nn.Module):
    """A convolution, whatever an image's size; K logits of it."""

    def __init__(self, n_classes):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d((2, 1))
        self.head = nn.Linear(8, n_classes)

    def forward(self, images):
        return self.head(self.pool(self.features(images)).flatten(1))


with torch.random.fork_rng():
    torch.manual_seed(2)
    NETWORKS = {k: Network(k).eval() for k in (1, 2, 3, 5)}
IMAGES = st.sampled_from(
    [(1, 3, 4, 4), (2, 3, 5, 3), (3, 3, 1, 1), (2, 3, 1, 7), (0, 3, 4, 4), (3, 4, 4), (2, 3, 0, 4)]
)


@cases(500)
@given(st.data())
def test_a_contrast_is_finite_and_one_a_target(data):
    shape = data.draw(st.sampled_from([(1, 2), (2, 3), (3, 1), (2, 5), (0, 3), (2, 0), (3,), (2, 2, 2)]))
    logits = data.draw(drawn(shape))
    targets = data.draw(indices(shape[0], max(2, shape[-1])))
    contrast = data.draw(NAMES | drawn(data.draw(st.sampled_from([shape, shape[-1:], (2,), (2, 2, shape[-1])]))))
    result = outcome(cotangent, contrast, logits, targets)
    if result is not None:
        assert result.shape == (*targets.shape, shape[-1])
        assert result.dtype == logits.dtype
        assert result.isfinite().all()


@cases(400)
@given(st.data())
def test_maps_are_finite_and_as_many_as_asked_for(data):
    shape, n_classes = data.draw(IMAGES), data.draw(st.sampled_from(sorted(NETWORKS)))
    images, targets = data.draw(drawn(shape)), data.draw(indices(shape[0], max(2, n_classes)))
    contrast = data.draw(NAMES | st.lists(NAMES, max_size=3) | drawn((n_classes,)))
    explainer = data.draw(st.sampled_from([*EXPLAINERS, "nonsense"]))
    layer = data.draw(st.sampled_from([None, None, "features.0", "features", "pool", "head", "nonsense", ""]))
    relu, upsample = data.draw(st.booleans()), data.draw(st.booleans())
    maps = outcome(explain, NETWORKS[n_classes], images, targets, explainer, contrast, layer, relu, upsample)
    if maps is not None:
        listed = (len(contrast),) if isinstance(contrast, list) else ()
        assert maps.shape[:-2] == (*listed, *targets.shape)
        assert not upsample or maps.shape[-2:] == images.shape[-2:]
        assert maps.isfinite().all()
        assert maps.dtype in (torch.float32, torch.float64)
        assert not relu or (maps >= 0).all()


@cases(300)
@given(st.data())
def test_perturbed_images_lie_in_the_unit_range_and_within_epsilon(data):
    shape, n_classes = data.draw(IMAGES), data.draw(st.sampled_from(sorted(NETWORKS)))
    images = data.draw(drawn(shape, numbers=data.draw(st.sampled_from([st.floats(0, 1, width=16), NUMBERS]))))
    targets = data.draw(indices(shape[0], max(2, n_classes)))
    epsilon = data.draw(st.floats(1e-4, 2) | st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 1e-300, 1e300]))
    steps = data.draw(st.integers(1, 3) | st.sampled_from([0, -1, 1.5, True, float("nan")]))
    moved = outcome(sign_perturb, NETWORKS[n_classes], images, targets, data.draw(NAMES), epsilon, steps)
    if moved is not None:
        assert (moved.shape, moved.dtype) == (images.shape, images.dtype)
        assert ((moved >= 0) & (moved <= 1)).all()
        assert ((moved - images).abs() <= epsilon * (1 + 1e-5) + 1e-6).all()


@cases(300)
@given(st.data())
def test_a_relative_probability_is_one(data):
    shape = data.draw(st.sampled_from([(1, 2), (3, 4), (0, 2), (2, 1), (3,), (2, 2, 2), (2, 0)]))
    logits = data.draw(drawn(shape))
    t, other = (data.draw(indices(shape[0], max(1, shape[-1]))) for _ in range(2))
    p = outcome(masking.relative_probability, logits, t, other)
    if p is not None:
        assert (p.shape, p.dtype) == (shape[:1], logits.dtype)
        assert ((p >= 0) & (p <= 1)).all()


@cases(300)
@given(st.data())
def test_kept_pixels_are_said_for_every_map(data):
    shape = data.draw(
        st.sampled_from([(1, 2, 3, 3), (2, 3, 1, 4), (0, 2, 2, 2), (2, 2, 1, 1), (2, 3, 3), (1, 2, 0, 3)])
    )
    maps = data.draw(drawn(shape))
    pair = data.draw(st.sampled_from([(0, 1), (1, 0), (0, 0), (), (0, 2), (0, -4), (5,)]))
    rules = data.draw(st.lists(st.sampled_from([*masking.RULES, "nonsense"]), max_size=3))
    kept = outcome(masking.kept_pixels, maps, pair, rules)
    if kept is not None:
        assert kept.shape == (shape[0], len(masking.FEATURES), shape[1], len(rules), *shape[2:])
        assert kept.dtype == torch.bool


@cases(300)
@given(st.data())
def test_shares_and_hits_are_shares(data):
    shape = data.draw(st.sampled_from([(3, 3), (2, 1, 4), (2, 2, 3, 3), (0, 3, 3), (3,), (), (2, 0, 3)]))
    region = data.draw(st.sampled_from([shape, shape[-2:], (2, *shape), (2, 2), (5, 1, 1), (1,)]))
    maps = data.draw(drawn(shape))
    regions = data.draw(drawn(region, st.sampled_from([torch.bool, torch.bool, torch.float32, torch.int64])))
    measured = outcome(localisation.measure, maps, regions)
    if measured is not None:
        for values in measured[:2]:
            assert values.shape == (*torch.broadcast_shapes(shape, region)[:-2], 3)
            assert ((values >= 0) & (values <= 1 + 1e-12)).all()
