"""Where the two most probable classes of each test image differ: what maps of both are held against."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cxlib import runtime
from cxlib.datasets.images import read as read_samples
from cxlib.datasets.samples import Samples
from cxlib.metrics import localisation, parts
from cxlib.review import selection


class Differences(NamedTuple):
    """Of the N test images of a data set.

    Attributes:
        samples: the images.
        leading: (N, 2), each image's most probable classes t1 and t2.
        p_2: (N,), the probability of t2.
        regions: (N, S, S) bool, the parts that tell t1 from t2, where they show.
        area: (N,), the regions' shares of the image; 0 where no such part shows.
        discriminative: whether class attributes say which parts tell two classes apart.
    """

    samples: Samples
    leading: np.ndarray
    p_2: np.ndarray
    regions: np.ndarray
    area: np.ndarray
    discriminative: bool

    def described(self, chosen: Sequence[int], explainers: Sequence[str]) -> dict[str, Any]:
        """What a table has to know of the chosen images beside their measures; the signs are those of explainers."""
        labels, leading = np.array(self.samples.labels)[chosen], self.leading[chosen]
        signs = localisation.evidence_signs(torch.from_numpy(leading), torch.from_numpy(labels), explainers)
        return {
            "area": self.area[chosen],
            "p_2": self.p_2[chosen],
            "leading": leading,
            "labels": labels,
            "discriminative": self.discriminative,
            "evidence_signs": signs.numpy(),
            "explainers": explainers,
            "targets": localisation.TARGETS,
            "signs": localisation.SIGNS,
        }


def read(data: str | Path, report: str | Path, disc_radius: float, image_size: int, crop: bool) -> Differences:
    """The differences of a data set's test images, by the probabilities that a network's test report holds.

    Args:
        data: a folder in CUB's layout.
        report: holds `probabilities` (N, K) of its test images.
        disc_radius: as `parts.read` takes it.
        image_size: as `images.preprocessing` takes it.
        crop: likewise.

    Raises:
        ValueError: the report is of another number of images, or what is read is broken.
    """
    leading, p = selection.leading(runtime.read_arrays(report)["probabilities"])
    samples = read_samples(data, "test")
    if len(samples) != len(p):
        raise ValueError(f"{report} is of {len(p)} images, but {data} has {len(samples)} test images: train again")
    known = parts.read(data, disc_radius)
    regions = parts.regions(known, samples, leading.tolist(), image_size, crop)
    return Differences(samples, leading, p[:, 1], regions, regions.mean((1, 2)), known.discriminative)
