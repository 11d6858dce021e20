"""ControlNets, against the trajectories of diffusers and of the original code."""

import pytest
import torch
from torch import Tensor

import flow
from mmdit import JointControlNet
from sd35.adapters.control import control_image
from sd35.adapters.steering import Steering
from sd35.controls import Control
from sd35.guidance import Guidance
from sd35.tasks.generate import Generate, Generation
from sd35.tasks.inputs import ControlInput
from sd35.tasks.steer import encode_control
from vae.image import to_tensor
from vae.model import SCALE, SHIFT
from weights.build import build_controlnet
from weights.keys import to_ours
from weights.layouts import JOINT_CONTROLNET

LIMIT = 1e-5


def trajectory(
    model, conditions, noise: Tensor, guidance_scale: float, sigmas: Tensor, solver="euler"
) -> Tensor:
    velocity = model.velocity(model.cond, model.uncond, guidance_scale, sigmas=sigmas, conditions=conditions)
    return torch.stack([noise, *(step.x for step in flow.SOLVERS[solver].run(velocity, noise, sigmas))])


def of_diffusers(file, case: str, nets, model, told: list[Control]) -> Tensor:
    """The trajectory; a condition for each half, where the stored control latents of the halves differ."""
    conditions = []
    for number, (net, control) in enumerate(zip(nets, told, strict=True)):
        kept = control.kept(file.config["cases"][case]["steps"])
        rows = file[f"{case}/control_latents_{number}"]
        assert [control.scale * (i in kept) for i in range(len(file[f"{case}/sigmas"]) - 1)] == pytest.approx(
            file[f"{case}/scale_per_step"][number].tolist()
        )
        halves = zip(rows.split(1), [("uncond",), ("cond",)] if len(rows) == 2 else [("cond",)], strict=True)
        conditions += [
            Steering(net, model.mmdit, row, control.scale, kept, "diffusers", branches)
            for row, branches in halves
        ]
    scale = file.config["cases"][case]["guidance_scale"]
    return trajectory(model, conditions, file[f"{case}/noise"], scale, file[f"{case}/sigmas"])


@pytest.mark.parametrize("case", ["scale", "interval", "edges", "two_nets"])
@torch.no_grad()
def test_the_official_kind_as_in_diffusers(case, runs, net_of, error) -> None:
    file, told = runs("controlnet"), runs("controlnet").config["cases"][case]
    numbers = [
        told[name] if isinstance(told[name], list) else [told[name]] for name in ("scale", "start", "end")
    ]
    controls = [Control("", "", scale=s, start=a, end=b) for s, a, b in zip(*numbers, strict=True)]
    nets = [net_of("8b"), net_of("8b", file.under("weights/second_controlnet/"))][: len(controls)]
    found = of_diffusers(file, case, nets, file.model(), controls)
    assert error(found, file[f"{case}/trajectory"]) <= LIMIT


def test_when_it_acts_as_in_diffusers(runs) -> None:
    rows = runs("controlnet").config["keep_table"]["rows"]
    assert len(rows) > 20
    for steps, start, end, kept in rows:
        found = Control("", "", start=start, end=end).kept(steps) if start < end else frozenset()
        assert "".join(str(int(i in found)) for i in range(steps)) == kept, (steps, start, end)


@pytest.mark.parametrize("case", ["original_8b", "original_8b_canny", "original_2b"])
@torch.no_grad()
def test_as_in_the_original(case, runs, net_of, error) -> None:
    file, told = runs("controlnet"), runs("controlnet").config["cases"][case]
    model, latents = (
        file.model(),
        file[f"original/control_latents_{case.split('_', 1)[1].replace('8b_', '').replace('8b', 'plain')}"],
    )
    steering = Steering(net_of(told["kind"]), model.mmdit, latents)
    sigmas, noise = file[f"{case}/sigmas"], file[f"{case}/trajectory"][0]
    found = trajectory(model, [steering], noise, told["guidance_scale"], sigmas, told["sampler"])
    assert error(found, file[f"{case}/trajectory"]) <= LIMIT


@torch.no_grad()
def test_beside_image_to_image_and_skip_layer_guidance_as_in_the_original(runs, net_of, error) -> None:
    """A generation as a user asks for it, with a module in memory; the layers are skipped without it."""
    file, case = runs("controlnet"), "original_8b_img2img_slg"
    told = file.config["cases"][case]
    skip = told["skip_layer"]
    given = {
        "image": file["original/image_latents"],
        "strength": told["denoise"],
        "steps": told["steps"],
        "guidance_scale": told["guidance_scale"],
        "guidance": Guidance(
            skip_layer=flow.SkipLayer(skip["scale"], skip["start"], skip["end"], tuple(skip["layers"]))
        ),
        "control": Control(net_of("8b"), to_tensor(file["in/control_image_uint8"].numpy())),
    }
    run = Generation(file.model(), Generate.of("", given, noise=torch.zeros(1, 16, 8, 6)))
    run.start = file[f"{case}/trajectory"][0]
    (steering,) = run.velocity.conditions
    stored = file["original/control_latents_plain"]
    assert steering.control_latents.shape == stored.shape
    object.__setattr__(steering, "control_latents", stored)
    found = torch.stack([run.start, *(step.x for step in run)])
    assert error(found, file[f"{case}/trajectory"]) <= LIMIT


@torch.no_grad()
def test_control_pictures_are_brought_into_range_and_encoded_as_there(runs, net_of, error) -> None:
    file = runs("controlnet")
    model, net = file.model(), net_of("8b")
    image = to_tensor(file["in/control_image_uint8"].numpy())
    ranged = control_image(image, "canny")
    assert error(ranged, file["original/control_image_canny"]) <= 1e-6
    for control_type, name in ((0, "plain"), (1, "canny")):
        net.control_type = torch.tensor([control_type], dtype=torch.int32)
        found = encode_control(model, net, Control("", ""), ControlInput(image))
        mean, logvar = model.vae.moments(ranged if control_type else image)
        assert torch.equal(found, (mean - SHIFT) * SCALE)
        drawn = mean + (logvar / 2).exp() * file["original/control_posterior_noise"]
        assert error((drawn - SHIFT) * SCALE, file[f"original/control_latents_{name}"]) <= LIMIT


@pytest.fixture
def joint(runs):
    """A ControlNet of joint blocks: copies of the base's first two, with the stored rest."""

    def build(kind: str):
        file = runs("controlnet_joint")
        base = file.model().mmdit.state_dict()
        first = (
            "x_embedder.",
            "pos_embed",
            "t_embedder.",
            "y_embedder.",
            "context_embedder.",
            "joint_blocks.0.",
            "joint_blocks.1.",
        )
        weights = {name: tensor for name, tensor in base.items() if name.startswith(first)}
        theirs = file.under(f"weights/{kind}/")
        recipes, unknown = to_ours(theirs, JOINT_CONTROLNET)
        assert unknown == []
        weights |= {name: recipe.tensor(lambda key: theirs[key].float()) for name, recipe in recipes.items()}
        net = build_controlnet(weights).float()
        net.load_state_dict(weights)
        assert isinstance(net, JointControlNet)
        return net.eval().requires_grad_(False)

    return build


@pytest.mark.parametrize("case", ["joint", "joint_interval", "controlnet_inpaint"])
@torch.no_grad()
def test_joint_blocks_as_in_diffusers(case, runs, joint, error) -> None:
    file = runs("controlnet_joint")
    told = file.config["cases"][case]
    interval = {"start": 0.2, "end": 0.8} if case == "joint_interval" else {}
    net = joint("inpaint_controlnet" if case == "controlnet_inpaint" else "joint_controlnet")
    found = of_diffusers(file, case, [net], file.model(), [Control("", "", scale=told["scale"], **interval)])
    assert error(found, file[f"{case}/trajectory"]) <= LIMIT


@torch.no_grad()
def test_what_joint_blocks_read_is_made_as_in_diffusers(runs, joint, error) -> None:
    """Without the shift; for inpainting with it, a black hole, and 1 where the picture is kept."""
    file = runs("controlnet_joint")
    model, image = file.model(), to_tensor(file["in/control_image_uint8"].numpy())
    mean, logvar = model.vae.moments(image)
    found = encode_control(model, joint("joint_controlnet"), Control("", ""), ControlInput(image))
    assert error(found, mean * SCALE) <= LIMIT
    drawn = mean + (logvar / 2).exp() * file["joint/control_posterior_noise_0"]
    assert error(drawn * SCALE, file["joint/control_latents_0"]) <= LIMIT

    mask = (file["in/mask_uint8"].float()[None, None] / 255 >= 0.5).float()
    net, stored = joint("inpaint_controlnet"), file["controlnet_inpaint/control_latents_0"]
    found = encode_control(model, net, Control("", "", mask=""), ControlInput(image, mask))
    assert torch.equal(found[:, 16:], stored[:1, 16:])
    mean, logvar = model.vae.moments(file["controlnet_inpaint/masked_image"])
    drawn = mean + (logvar / 2).exp() * file["controlnet_inpaint/control_posterior_noise_0"]
    assert error((drawn - SHIFT) * SCALE, stored[:1, :16]) <= LIMIT
    assert torch.equal(found[:, :16], (mean - SHIFT) * SCALE)
