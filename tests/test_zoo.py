"""A few networks of the zoo, one a kind; `make zoo` takes them all."""

import pytest
from zoo import EXPLAINERS, TIMM, TORCHVISION, examine, table

KINDS = {
    "resnet18": ("layer4", True),
    "squeezenet1_1": ("features", True),
    "shufflenet_v2_x0_5": ("conv5", True),
    "regnet_y_400mf": ("trunk_output", True),
    "mobilenet_v3_small": ("features", True),
    "swin_t": ("permute", False),
    "resnet10t": ("layer4", True),
    "mobilenetv3_small_050": ("blocks.5", True),
    "convnext_atto": ("stages.3", False),
    "test_coatnet": ("stages.3", False),
}


@pytest.mark.parametrize(("name", "layer", "complete"), [(name, *expected) for name, expected in KINDS.items()])
def test_every_explainer_works_at_the_layer_that_is_found(name, layer, complete):
    row = examine(name)
    assert row.layer == layer
    assert row.works == list(EXPLAINERS)
    assert row.complete is complete
    assert not row.note


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "pit_ti_224"])
def test_a_network_without_a_map_says_so_in_one_line_and_is_explained_as_a_whole(name):
    row = examine(name)
    assert row.works == ["gradient", "fullgrad"]
    assert "ends in no spatial map: name a layer" in row.note
    assert "\n" not in row.note


def test_the_sweep_takes_all_of_torchvision_and_forty_families_of_timm():
    assert len(TORCHVISION) >= 80
    assert len(set(TIMM)) >= 40
    assert not set(TIMM) & set(TORCHVISION)


def test_the_table_has_a_line_for_each_network():
    row = examine("resnet10t")
    assert "| resnet10t | `layer4` | 2 x 2 of 64 | x | x | x | x | x | yes |  |" in table("timm", [row]).splitlines()
