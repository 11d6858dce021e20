"""The MM-DiT of Stable Diffusion 3 and 3.5, and the ControlNets that steer it."""

from .compiled import compile_blocks, eager_blocks, is_compiled, is_watched
from .config import MMDiTConfig, ShapeError
from .controlnet import ControlNet, ControlNetConfig
from .embed import position_table, timestep_embedding
from .flops import flops
from .graphs import eager_forward, forget_graphs, graph_forward
from .init import init_weights
from .joint_controlnet import JointControlNet, JointControlNetConfig
from .model import MMDiT, spread
from .modulation import Released, crop_table, release_modulation
from .offload import InTurn, Offloaded, OnDemand

__all__ = [
    "ControlNet",
    "ControlNetConfig",
    "InTurn",
    "JointControlNet",
    "JointControlNetConfig",
    "MMDiT",
    "MMDiTConfig",
    "Offloaded",
    "OnDemand",
    "Released",
    "ShapeError",
    "compile_blocks",
    "crop_table",
    "eager_blocks",
    "eager_forward",
    "flops",
    "forget_graphs",
    "graph_forward",
    "init_weights",
    "is_compiled",
    "is_watched",
    "position_table",
    "release_modulation",
    "spread",
    "timestep_embedding",
]
