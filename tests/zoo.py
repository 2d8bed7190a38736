"""Every explainer, under every contrast, on one network after the other: `python -m tests.zoo` writes docs/zoo.md.

`python -m tests.zoo NAME...` prints the rows of some networks. Weights are random, images small.
"""

import gc
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import nn

from cxlib import networks, runtime, taps
from cxlib.contrasts import CONTRASTS, cotangent
from cxlib.explainers import explain
from cxlib.networks.build import last_layer

EXPLAINERS = ("gradient", "gradcam", "linear_approximation", "xgradcam", "fullgrad")
TORCHVISION = torchvision.models.list_models(module=torchvision.models)
#: A small network of each of timm's families; names that torchvision has too would be torchvision's.
_TIMM = """
    resnet10t res2next50 resnest14d skresnet18 legacy_seresnet18 resnetv2_18 nf_regnet_b0 nfnet_l0 regnetx_002
    densenetblur121d dpn48b dla46_c cs3darknet_focus_s cspnext_s ese_vovnet19b_slim inception_v4 legacy_xception
    xception41 hrnet_w18_small selecsls42 tresnet_m rexnet_100 mobileone_s0 tf_efficientnet_b0 lcnet_035
    hardcorenas_a ghostnet_050 repghostnet_050 mobilenetv3_small_050 fasternet_t0 starnet_s1 lcnetv2_base hgnetv2_b0
    repvit_m0_9 convnext_atto convmixer_768_32 inception_next_atto mambaout_femto rdnet_tiny edgenext_small
    efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 fastvit_t8 mobilevit_s swiftformer_xs
    shvit_s1 poolformerv2_s12 pvt_v2_b0 tiny_vit_5m_224 nest_tiny davit_tiny focalnet_tiny_srf gcvit_xxtiny
    test_coatnet swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 visformer_tiny
    levit_128s coat_lite_tiny pit_ti_224 xcit_nano_12_p16_224 vit_tiny_patch16_224 deit_tiny_distilled_patch16_224
    eva02_tiny_patch14_224 cait_xxs24_224 convit_tiny gmlp_ti16_224 twins_pcpvt_small mvitv2_tiny hiera_tiny_224
    volo_d1_224 sam2_hiera_tiny
"""
TIMM = _TIMM.split()
# The sizes that a network may be asked to take, and its images' size; tried in this order.
SIDES = (64, 96, 128, 224, 256)


@dataclass
class Row:
    """What one network does: its explanation layer, the layer's resolution, and the explainers that work."""

    network: str
    layer: str = "none"
    side: str = ""
    works: list[str] = field(default_factory=list)
    complete: bool = False
    note: str = ""

    def __str__(self) -> str:
        cells = [
            self.network,
            f"`{self.layer}`",
            self.side,
            *("x" if name in self.works else "" for name in EXPLAINERS),
        ]
        return f"| {' | '.join([*cells, 'yes' if self.complete else '', self.note])} |"


def small(name: str) -> tuple[networks.Network, torch.Tensor]:
    """A network with random weights and two images, as small as it takes them; half its parameters are not frozen."""
    for side in SIDES:
        try:
            with runtime.seeded(0):
                if name in TORCHVISION:
                    options = {"image_size": side // 16 * int(name[-2:])} if name.startswith("vit_") else {}
                    side = options.get("image_size", 224 if name == "maxvit_t" else side)
                    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
                    inner = torchvision.models.get_model(name, num_classes=5, **options, **extra)
                else:
                    inner = _timm(name, side)
                images = torch.rand(2, 3, side, side)
            network = networks.freeze(networks.Network(name, inner, {}))
            with runtime.seeded(1):
                for parameter in inner.get_submodule(last_layer(inner)).parameters():
                    parameter.normal_(0, 0.1)  # some heads begin with zeros, which would explain nothing
            taps.logits(network, images)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            reason = error
            continue
        for parameter in list(network.parameters())[::2]:
            parameter.requires_grad_()
        return network.train(), images
    raise ValueError(f"{name} takes none of the sizes {SIDES}: {reason}")


def _timm(name: str, side: int) -> nn.Module:
    import timm

    if not timm.models.get_pretrained_cfg(name).fixed_input_size:
        return timm.create_model(name, num_classes=5)
    try:
        return timm.create_model(name, num_classes=5, img_size=side)
    except TypeError:
        return timm.create_model(name, num_classes=5)


def examine(name: str) -> Row:
    """Run every explainer under every contrast and check what must hold.

    Raises:
        AssertionError: a map is not what it should be, or the network is not left as it was.
    """
    network, images = small(name)
    row, targets = Row(name), torch.tensor([1, 3])
    try:
        layer = networks.explanation_layer(network)
        row.layer = next(name for name, module in network.inner.named_modules() if module is layer)
    except ValueError as error:
        row.note = str(error)
    before = [parameter.requires_grad for parameter in network.parameters()]
    for explainer in EXPLAINERS:
        try:
            maps = explain(network, images, targets, explainer, list(CONTRASTS), upsample=False)
        except ValueError as error:
            row.note = str(error)
        else:
            row.works.append(explainer)
            _check(network, images, targets, explainer, maps)
            if explainer == "gradcam":
                row.side = f"{maps.shape[-2]} x {maps.shape[-1]} of {images.shape[-1]}"
            if explainer == "fullgrad":
                row.complete = _is_complete(network, images, targets, maps)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules()), (
            "a hook left"
        )
        assert all(module.training for module in network.modules()), "training mode was not restored"
        assert [parameter.requires_grad for parameter in network.parameters()] == before, "requires_grad changed"
        assert all(parameter.grad is None for parameter in network.parameters()), "a parameter got a gradient"
    return row


def _check(network: nn.Module, images: torch.Tensor, targets: torch.Tensor, explainer: str, maps: torch.Tensor) -> None:
    assert maps.shape[:2] == (len(CONTRASTS), 2), maps.shape
    assert maps.isfinite().all(), "not finite"
    assert maps.any(), "all zero"
    if _difference(network, images, targets, explainer) > 1e-3:
        # Random weights may amplify roundings into other signs of ReLUs; in float64 there is no such excuse.
        difference = _difference(network.double(), images.double(), targets, explainer)
        network.float()
        assert difference < 1e-6, f"a batch differs from a single image by {difference:.1e}"


def _difference(network: nn.Module, images: torch.Tensor, targets: torch.Tensor, explainer: str) -> float:
    """Of the second image's weighted map, alone and in the batch, as a share of its largest value."""
    together = explain(network, images, targets, explainer, upsample=False)[1]
    alone = explain(network, images[1:], targets[1:], explainer, upsample=False)[0]
    return float((together - alone).abs().max() / together.abs().max())


def _is_complete(network: nn.Module, images: torch.Tensor, targets: torch.Tensor, maps: torch.Tensor) -> bool:
    logits = taps.logits(network, images)
    explained = torch.stack([(cotangent(name, logits, targets) * logits).sum(-1) for name in CONTRASTS])
    return bool(((maps.sum((-2, -1)) - explained).abs() <= 1e-3 * explained.abs().amax(-1, keepdim=True)).all())


HEAD = f"""# The zoo

Which explainers work on which network without naming a layer, under every contrast
({", ".join(CONTRASTS)}): maps of the right shape and finite, a batch gives what
single images give, no hook is left, `requires_grad` and training mode are restored. Written by `make zoo`
(`python -m tests.zoo`), on random weights and small images.

*Map*: the layer's resolution for images of that size. *Adds up*: FullGrad's map sums to the logit or its contrast,
within float32 (`cxlib/explainers/fullgrad.py` says when it does). `gradient` and `fullgrad` need no layer.

"""


def table(title: str, rows: list[Row]) -> str:
    columns = ["network", "layer", "map", *EXPLAINERS, "adds up", "note"]
    lines = [f"## {title}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *map(str, rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table, or print some rows; what fails is said in its row, and ends in exit code 1."""
    warnings.filterwarnings("ignore")
    names = sys.argv[1:]
    rows, failed = {}, []
    for name in runtime.progress(names or [*TORCHVISION, *TIMM], "zoo", "network"):
        try:
            rows[name] = examine(name)
        except Exception as error:  # one network's own trouble must not cost the others' rows
            rows[name] = Row(name, note=f"**fails**: {str(error).splitlines()[0]}")
            failed.append(name)
        gc.collect()
        if names:
            print(rows[name], flush=True)
    if not names:
        with runtime.atomic(Path("docs/zoo.md")) as file:
            tables = [
                table("torchvision", [rows[name] for name in TORCHVISION]),
                table("timm, one network of each family", [rows[name] for name in TIMM]),
            ]
            file.write_text(HEAD + "\n".join(tables))
    if failed:
        sys.exit(f"{len(failed)} networks fail: {', '.join(failed)}")


if __name__ == "__main__":
    main()
