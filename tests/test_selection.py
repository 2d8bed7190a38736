"""Which images are explained: the order of classes, and the draw on both sides of a threshold."""

import numpy as np
import pytest

from cxlib.datasets.images import choose
from cxlib.review import selection

P = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.34, 0.33, 0.33], [0.02, 0.97, 0.01], [0.6, 0.4, 0.0]])


def test_leading_classes_are_in_order_and_of_equal_ones_the_first():
    classes, probabilities = selection.leading(P)
    assert classes.tolist() == [[0, 1], [2, 0], [0, 1], [1, 0], [0, 1]]
    assert probabilities.tolist() == [[0.5, 0.3], [0.8, 0.1], [0.34, 0.33], [0.97, 0.02], [0.6, 0.4]]
    assert selection.leading(P, 3).classes[3].tolist() == [1, 0, 2]


def test_a_class_that_there_is_not_is_improbable_and_one_class_has_no_second():
    p = np.array([[0.3, 0.7], [1.0, 0.0]])
    classes, probabilities = selection.leading(p, 3)
    assert classes[:, :2].tolist() == [[1, 0], [0, 1]]
    assert probabilities.tolist() == [[0.7, 0.3, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="one class, which has no second"):
        selection.leading(np.ones((3, 1)))


def test_the_threshold_itself_is_below_it_and_those_above_come_first():
    p_2 = np.array([0.3, 0.1, 0.33, 0.02, 0.4])
    assert selection.both_sides(p_2, 0.1, (0, 0), 0) == [0, 2, 4, 1, 3]
    eligible = np.array([True, False, False, True, True])
    assert selection.both_sides(p_2, 0.1, (0, 0), 0, eligible) == [0, 4, 3]


def test_each_side_is_drawn_with_the_seed():
    p_2 = np.linspace(0, 0.5, 50)
    chosen = selection.both_sides(p_2, 0.1, (5, 3), 7)
    assert chosen == choose(np.flatnonzero(p_2 > 0.1).tolist(), 5, 7) + choose(
        np.flatnonzero(p_2 <= 0.1).tolist(), 3, 7
    )
    assert len(chosen) == 8


def test_the_most_ambiguous_are_those_with_the_highest_p_2():
    assert selection.most_ambiguous(selection.leading(P), 3) == [4, 2, 0]


def test_of_each_pair_the_most_ambiguous_whichever_of_the_two_leads():
    leading, names = selection.leading(P), ["owl", "ice cream", "wren"]
    assert selection.most_ambiguous(leading, 2, names, ["ice cream", "owl", "wren", "owl"]) == [4, 2, 1]
    assert selection.most_ambiguous(leading, 1, names, ["wren", "ice cream"]) == []


@pytest.mark.parametrize(
    ("between", "message"), [(["owl"], "'owl' has no second class"), (["owl", "emu"], "'emu' is none of the 3 classes")]
)
def test_a_name_without_its_second_or_of_no_class_is_refused(between, message):
    with pytest.raises(ValueError, match=message):
        selection.most_ambiguous(selection.leading(P), 1, ["owl", "ice cream", "wren"], between)


@pytest.mark.parametrize("threshold", [-0.1, 2.0, float("nan")])
def test_a_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        selection.both_sides(np.array([0.3]), threshold, (0, 0), 0)
