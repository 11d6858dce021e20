import pytest
import torch
from safetensors import safe_open

from mmdit import ControlNet, ControlNetConfig
from sd35.adapters.control import CONTROL_TYPES, control_image, control_type_of


def small(*, typed: bool = True) -> ControlNet:
    return ControlNet(ControlNetConfig(dim=64, depth=1, num_heads=1, pooled_dim=8, typed=typed))


def test_the_type_is_read_off_the_file():
    net = small()
    for number, name in enumerate(CONTROL_TYPES):
        net.load_state_dict(net.state_dict() | {"control_type": torch.tensor([number], dtype=torch.int32)})
        assert control_type_of(net) == name
    assert control_type_of(small(typed=False)) is None


def test_an_unknown_number_is_an_error():
    net = small()
    net.load_state_dict(net.state_dict() | {"control_type": torch.tensor([7], dtype=torch.int32)})
    with pytest.raises(ValueError, match="control_type 7, expected 0 to 2"):
        control_type_of(net)


def test_canny_edges_span_half_to_128():
    image = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    assert control_image(image, "canny").flatten().tolist() == [0.5, 64.25, 128.0]


@pytest.mark.parametrize("control_type", ["blur", "depth"])
def test_blur_and_depth_stay_as_they_are(control_type):
    image = torch.linspace(-1, 1, 12).view(1, 3, 2, 2)
    assert torch.equal(control_image(image, control_type), image)


def test_an_unknown_type_is_an_error():
    with pytest.raises(ValueError, match="one of blur, canny, depth, got 'pose'"):
        control_image(torch.zeros(1, 3, 1, 1), "pose")


def test_ranges_are_those_of_the_original(shared_reference):
    with safe_open(shared_reference / "parity" / "vae.safetensors", "pt") as file:
        names = ("in/image01_8x8", "out/pre_canny_official", "out/pre_normal")
        unit, canny, other = (file.get_tensor(name) for name in names)
    image = 2 * unit - 1
    torch.testing.assert_close(control_image(image, "canny"), canny, rtol=1e-6, atol=1e-5)
    assert torch.equal(control_image(image, "depth"), other)
