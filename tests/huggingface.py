"""Small networks of Hugging Face's transformers, random, in float64: nothing is downloaded."""

import warnings

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf

from cxlib import outputs

N_CLASSES, N_BLOCKS = 5, 3
SIDE, PATCH, GRID = (24, 16), 8, (3, 2)
_PLAIN = {"hidden_size": 16, "num_hidden_layers": N_BLOCKS, "num_attention_heads": 2, "num_labels": N_CLASSES}
_IMAGES = {"image_size": SIDE, "patch_size": PATCH}
_MLP = {"intermediate_size": 32}
_STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "num_labels": N_CLASSES}
_SWIN = {"image_size": (64, 32), "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
_SWIN |= {"window_size": 4, "num_labels": N_CLASSES}
_SEGFORMER = _STAGES | {"num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16}
_TEXT = {"vocab_size": 50, "max_position_embeddings": 12, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 47}
PROMPTS = torch.tensor([[48, i, 7, i, 49] for i in range(N_CLASSES)])


def _resnet(**options):
    config = hf.ResNetConfig(embedding_size=8, layer_type="basic", **_STAGES, **options)
    return hf.ResNetForImageClassification(config)


def _vit(**options):
    return hf.ViTForImageClassification(hf.ViTConfig(**_PLAIN | _IMAGES | _MLP | options))


def _two_towers(kind, **more):
    tower = {"hidden_size": 16, "num_hidden_layers": N_BLOCKS, "num_attention_heads": 2, **_MLP}
    text, vision = tower | _TEXT | more, tower | {"image_size": 24, "patch_size": PATCH}
    config = getattr(hf, f"{kind}Config")(text_config=text, vision_config=vision, projection_dim=12)
    return getattr(hf, f"{kind}Model")(config)


BUILD = {
    "ResNet": _resnet,
    "ConvNeXT": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**_STAGES)),
    "Swin": lambda: hf.SwinForImageClassification(hf.SwinConfig(**_SWIN)),
    "Swin v2": lambda: hf.Swinv2ForImageClassification(hf.Swinv2Config(**_SWIN)),
    "SegFormer": lambda: hf.SegformerForImageClassification(hf.SegformerConfig(**_SEGFORMER)),
    "ViT": _vit,
    "DeiT": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**_PLAIN, **_IMAGES, **_MLP)),
    "DeiT, distilled": lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**_PLAIN, **_IMAGES, **_MLP)),
    "BEiT": lambda: hf.BeitForImageClassification(
        hf.BeitConfig(**_PLAIN, **_IMAGES, **_MLP, use_relative_position_bias=True)
    ),
    "DINOv2": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**_PLAIN, image_size=24, patch_size=PATCH)),
    "DINOv2, registers": lambda: hf.Dinov2WithRegistersForImageClassification(
        hf.Dinov2WithRegistersConfig(**_PLAIN, image_size=24, patch_size=PATCH, num_register_tokens=3)
    ),
    "DINOv3": lambda: hf.DINOv3ViTModel(
        hf.DINOv3ViTConfig(**_PLAIN, **_MLP, image_size=24, patch_size=PATCH, num_register_tokens=2)
    ),
    "CLIP": lambda: _two_towers("CLIP", projection_dim=12),
    "SigLIP": lambda: _two_towers("Siglip"),
}
#: Those whose blocks all see all tokens, each with the tokens before the patches and the grid of `images` of it.
PLAIN = {
    "ViT": (1, GRID),
    "DeiT": (2, GRID),
    "DeiT, distilled": (2, GRID),
    "BEiT": (1, GRID),
    "DINOv2": (1, GRID),
    "DINOv2, registers": (4, GRID),
    "DINOv3": (3, GRID),
    "CLIP": (1, (3, 3)),
    "SigLIP": (0, (3, 3)),
}


class FirstFeatures(nn.Module):
    """A network that has no classifier: some of its features are the logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images).pooler_output[:, :N_CLASSES]


def random(network):
    """Weights that make no part negligible, in float64, frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, tensor in network.double().state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.3, 0.6)
            elif tensor.is_floating_point() and tensor.ndim:
                tensor.normal_(0, 0.4 if tensor.ndim > 1 else 0.3)
    return network.eval().requires_grad_(False)


def build(family, **options):
    """A network (B, 3, H, W) -> logits (B, 5): a classifier, or two towers with five prompts."""
    network = random(BUILD[family](**options))
    if family in ("CLIP", "SigLIP"):
        return outputs.ImageText(network, PROMPTS)
    return FirstFeatures(network) if family == "DINOv3" else network


def images(family, n=2):
    side = (64, 32) if family not in PLAIN else SIDE if PLAIN[family][1] == GRID else (24, 24)
    return torch.rand(n, 3, *side, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
