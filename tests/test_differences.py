"""Where two classes differ: an image's two most probable classes, and the parts that tell them apart."""

import numpy as np
import pytest
from test_localisation import birds as birds

from cxlib import runtime
from cxlib.datasets import images
from cxlib.metrics import localisation, parts
from cxlib.review import differences


@pytest.fixture
def tested(birds, tmp_path):
    """A report on the test images: each shows its label with 0.6 (where its number is even 0.3), and the next class."""
    labels = images.read(birds, "test").labels
    probabilities = np.full((len(labels), max(labels) + 1), 1e-3)
    for image, label in enumerate(labels):
        first, second = (0.6, 0.3) if image % 2 else (0.3, 0.6)
        probabilities[image, label] = first
        probabilities[image, label // 3 * 3 + (label + 1) % 3] = second
    runtime.write_arrays(tmp_path / "report.npz", probabilities=probabilities)
    return tmp_path / "report.npz", probabilities


def test_regions_are_the_parts_in_which_the_two_leading_classes_differ(birds, tested):
    report, probabilities = tested
    known = differences.read(birds, report, 0.1, 48, False)
    first, second = np.argmax(probabilities, 1), np.argsort(probabilities, 1)[:, -2]
    assert np.array_equal(known.leading, np.stack([first, second], 1))
    assert np.array_equal(known.p_2, np.full(len(first), 0.3))
    for image in range(len(first)):
        (alone,) = parts.regions(
            parts.read(birds, 0.1), known.samples.take([image]), [(first[image], second[image])], 48, False
        )
        assert np.array_equal(known.regions[image], alone)
        assert known.area[image] == alone.sum() / 48**2
    assert known.area.max() > 0
    assert known.discriminative


def test_what_a_table_knows_of_the_chosen_images(birds, tested):
    known = differences.read(birds, tested[0], 0.1, 48, False)
    described = known.described([3, 0], ["gradcam", "gradient"])
    assert np.array_equal(described["labels"], np.array(known.samples.labels)[[3, 0]])
    assert np.array_equal(described["leading"], known.leading[[3, 0]])
    assert np.array_equal(described["area"], known.area[[3, 0]])
    # Image 3 shows its first class, so that the map of t1 should be positive where they differ; image 0 its second.
    signs = [[localisation.SIGNS[sign] for sign in of_map] for of_map in described["evidence_signs"][:, 0]]
    assert signs == [["positive", "negative"], ["negative", "positive"]]


def test_a_report_of_other_images_is_refused(birds, tested):
    report, probabilities = tested
    runtime.write_arrays(report, probabilities=probabilities[1:])
    with pytest.raises(ValueError, match=r"report\.npz is of .* images, but .* test images: train again"):
        differences.read(birds, report, 0.1, 48, False)
