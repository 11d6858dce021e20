"""The MM-DiT of Stable Diffusion 3 and 3.5, and the ControlNets that steer it."""

from .config import MMDiTConfig, ShapeError
from .embed import position_table, timestep_embedding
from .init import init_weights
from .model import MMDiT

__all__ = ["MMDiT", "MMDiTConfig", "ShapeError", "init_weights", "position_table", "timestep_embedding"]
