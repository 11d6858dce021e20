"""One picture by several processes, by plain collectives; `torchrun` starts them, each with the whole model.

    torchrun --nproc-per-node 2 draw.py

with `draw.py` as in docs/scale.md. `branches` shares the calls of guidance, `tokens` one large picture.
"""

from .branches import shared_branches as shared_branches
from .tokens import split_tokens as split_tokens
