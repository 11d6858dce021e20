"""The MM-DiT of Stable Diffusion 3 and 3.5, and the ControlNets that steer it."""

from .config import MMDiTConfig, ShapeError
from .controlnet import ControlNet, ControlNetConfig
from .embed import position_table, timestep_embedding
from .init import init_weights
from .joint_controlnet import JointControlNet, JointControlNetConfig
from .model import MMDiT, spread

__all__ = [
    "ControlNet",
    "ControlNetConfig",
    "JointControlNet",
    "JointControlNetConfig",
    "MMDiT",
    "MMDiTConfig",
    "ShapeError",
    "init_weights",
    "position_table",
    "spread",
    "timestep_embedding",
]
