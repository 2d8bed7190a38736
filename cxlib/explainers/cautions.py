"""What an explanation may mean other than was meant, in one line each: from what has been computed, without a pass."""

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from cxlib.networks import nested

#: Where the frames of a call lie that is not the caller's: this package, and the decorators of the standard library.
_OURS = (str(Path(__file__).parents[1]), contextlib.__file__)
#: What features without a head are called in the answers of Hugging Face's `transformers`.
_FEATURES = ("pooler_output", "image_embeds")
#: Operations behind a sigmoid that leave it one.
_RESHAPING = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Clone", "ToCopy")
#: The CAMs that are one map where the gradient is constant.
COINCIDING = ("gradcam", "linear_approximation", "xgradcam")

_SOFTMAX = (
    "a softmax is inside the network already, for its outputs are not negative and sum to 1: contrasts are made for"
    " logits, and `weighted` would take the softmax of probabilities; explain with output=torch.log, or without it"
)
_SIGMOID = (
    "the network ends in a sigmoid, which flattens the gradient of what is certain: explain with output=torch.logit; if"
    " its labels do not exclude each other, `weighted` and its kin set labels that are there together against each"
    " other: take `original`, or `contrasts.groups` of the labels that are meant"
)
_SEVERAL = (
    "the network's labels do not exclude each other (multi_label_classification): `weighted` and its kin set labels"
    " that are there together against each other; take `original`, or `contrasts.groups` of the labels that are meant"
)
_HEADLESS = (
    "the network answers with features, `{}`, that pass for logits, for it has no head: take the model that has one"
    " (…ForImageClassification), or give `explain` an `output`"
)


class ExplanationWarning(UserWarning):
    """An explanation may mean something else than was meant."""


def of_layer(layer: str) -> str:
    """What to say of a layer over which the gradient is constant (`is_constant`)."""
    return (
        f"the gradient is constant over the layer {layer}, so that GradCAM and linear approximation are the same map,"
        " and XGradCAM too without negative activations: choose an earlier layer"
    )


def is_constant(gradients: Tensor) -> bool:
    """Whether gradients (..., h, w) are constant over the map, and not 0, as they are where only pooling follows."""
    centre = gradients.mean((-2, -1), keepdim=True)
    return bool((gradients - centre).abs().max() < 1e-5 * gradients.abs().max())


def of_logits(logits: Tensor) -> list[str]:
    """What to say of logits (B, K) that look like probabilities: none negative, and every row sums to 1."""
    probable = (logits >= 0).all() & ((logits.sum(-1) - 1).abs() < 1e-3).all()
    return [_SOFTMAX] if logits.shape[-1] > 1 and bool(probable) else []


def of_answer(answer: Any) -> list[str]:
    """What to say of a network's answer: features that pass for logits, a softmax or a sigmoid as its last operation.

    The operation, for values do not tell: cosines and the logits of two classes may lie in [0, 1] as a sigmoid's do,
    and the probabilities of half precision sum to 1 but roughly.
    """
    features = _FEATURES if isinstance(answer, Mapping) and "logits" not in answer else ()
    doubts = [_HEADLESS.format(name) for name in features if name in answer]
    last = _last_operation(getattr(answer, "logits", answer))
    return doubts + [
        text for name, text in (("SoftmaxBackward0", _SOFTMAX), ("SigmoidBackward0", _SIGMOID)) if name == last
    ]


def of_network(network: nn.Module, contrasts: Sequence[object]) -> list[str]:
    """What to say of a network that is set up for several labels an image, by contrasts in which classes compete."""
    configs = (getattr(module, "config", None) for module in nested(network))
    several = any(getattr(config, "problem_type", None) == "multi_label_classification" for config in configs)
    compete = any(isinstance(contrast, str) and contrast != "original" for contrast in contrasts)
    return [_SEVERAL] if several and compete else []


def warn(doubts: Sequence[str]) -> None:
    """Warn of each doubt once, at the line that called this package; Python's filters keep later ones there quiet."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    for doubt in dict.fromkeys(doubts):
        warnings.warn(doubt, ExplanationWarning, stacklevel=level)


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """Inside, our warnings are one line on standard error, beside a progress bar; others are as before."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, ExplanationWarning):
                tqdm.write(f"Warning: {message}", sys.stderr)
            else:
                others(message, category, *place, **more)

        warnings.showwarning = show
        yield


def _last_operation(logits: Any) -> str:
    """The name of the operation that made a tensor, whatever reshaped it behind; empty without a graph."""
    node: Any = logits.grad_fn if isinstance(logits, Tensor) else None
    while node is not None and node.name().startswith(_RESHAPING):
        node = node.next_functions[0][0]
    return "" if node is None else node.name()
