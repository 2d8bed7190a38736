"""Why this class and not that one: a walk through cxlib, cell by cell.

    python examples/why_not_the_other.py [IMAGE CHECKPOINT]

Without arguments a small random network looks at a painted image, so that everything runs without any download. With a
photograph and a file of resnet18's weights it is about something.
"""

# %% A network and an image. `build` freezes the network, which takes images in [0, 1] and normalises inside.
import sys

import matplotlib
import torch
from PIL import Image, ImageDraw

import cxlib
from cxlib import adapters, contrasts, networks, runtime

matplotlib.use("Agg")
from matplotlib import pyplot as plt

if len(sys.argv) > 2:
    photograph, weights = Image.open(sys.argv[1]), sys.argv[2]
else:
    photograph, weights = Image.new("RGB", (256, 256), "seagreen"), None
    ImageDraw.Draw(photograph).ellipse((60, 80, 180, 200), fill="goldenrod", outline="black", width=6)

with runtime.seeded(0):
    network = networks.build("resnet18", weights)
image = networks.transform("resnet18", weights)(photograph)[None]  # (1, 3, 224, 224)

# %% The two classes that compete.
probabilities = network(image).softmax(-1)
t1, t2 = probabilities[0].topk(2).indices.tolist()
print(f"class {t1}: {probabilities[0, t1]:.3f}; class {t2}: {probabilities[0, t2]:.3f}")

# %% One forward pass, both targets, five contrasts: names, or what the factories return.
asked = {
    "original": "original",
    "weighted": "weighted",
    "Finer-CAM": contrasts.finer(strength=0.6),
    "t1 and t2 alone": contrasts.groups([t1], [t2]),
    "own cotangent": torch.nn.functional.one_hot(torch.tensor(t1), probabilities.shape[-1]).float(),
}
maps = cxlib.explain(network, image, torch.tensor([[t1, t2]]), "gradcam", list(asked.values()), layer="layer3")
print(tuple(maps.shape), "contrasts, images, targets, height, width")

# %% FullGrad adds up: the sum over its pixels is what the contrast says of the logits.
difference = network(image)[0, t1] - network(image)[0, t2]
whole = cxlib.explain(network, image, torch.tensor([t1]), "fullgrad", contrasts.groups([t1], [t2]))
print(f"y_t1 - y_t2 = {difference:.4f}, FullGrad's sum = {whole.sum():.4f}")

# %% The same contrast in other libraries, where they are installed.
try:
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
except ImportError:
    print("pip install grad-cam captum to compare")
else:
    network.requires_grad_()  # both need it, `explain` does not
    layer = network.inner.layer3
    theirs = LayerGradCam(adapters.Contrasted(network, "weighted"), layer)
    captum_map = theirs.attribute(image, additional_forward_args=(torch.tensor([t1]),), relu_attributions=False)
    ours = cxlib.explain(network, image, torch.tensor([t1]), layer="layer3", upsample=False)
    print(f"captum differs by {(captum_map.detach()[:, 0] - ours).abs().max():.1e}")
    with GradCAM(network, [layer]) as method:
        print("grad-cam draws", method(image, targets=[adapters.ContrastTarget("weighted", t1)]).shape)

# %% A picture: red speaks for the class, blue against it.
figure, axes = plt.subplots(2, len(asked) + 1, figsize=(2.2 * (len(asked) + 1), 4.6), layout="constrained")
for row, target in enumerate((t1, t2)):
    axes[row, 0].imshow(image[0].permute(1, 2, 0))
    axes[row, 0].set_title(f"class {target}")
    for axis, name, heat in zip(axes[row, 1:], asked, maps[:, 0, row]):
        limit = heat.abs().max()
        axis.imshow(image[0].mean(0), cmap="gray")
        axis.imshow(heat, cmap="bwr", vmin=-limit, vmax=limit, alpha=0.5)
        axis.set_title(name)
for axis in axes.flat:
    axis.axis("off")
figure.savefig("why_not_the_other.png", dpi=100)
