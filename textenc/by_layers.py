"""T5 on a device that has room for one of its layers."""

import torch
from torch import Tensor, nn

from .t5 import T5


def by_layers(model: T5, device: torch.device | str) -> T5:
    """Have each layer's weights on a device while it runs, and where they were before and after.

    The numbers are those of the whole model on that device, to the last bit. The token table, the table of
    relative positions and the last norm stay there. Copying takes the time that the device's connection needs
    for the weights, once a call.

    Args:
        model: on the CPU, or mapped from its file; it is changed.
        device: where it runs.
    """
    model.shared.to(device)
    model.encoder.final_layer_norm.to(device)
    for name, module in model.named_modules():  # read before the first layer runs, for all of them
        if name.endswith("relative_attention_bias"):
            module.to(device)
    for layer in model.encoder.block:
        own: dict[Tensor, Tensor] = {}

        def bring(module: nn.Module, _: object, own: dict[Tensor, Tensor] = own) -> None:
            for tensor in (*module.parameters(), *module.buffers()):
                own[tensor] = tensor.data
                tensor.data = tensor.data.to(device, copy=True)

        def leave(_: nn.Module, __: object, ___: object, own: dict[Tensor, Tensor] = own) -> None:
            for tensor, data in own.items():
                tensor.data = data
            own.clear()

        layer.register_forward_pre_hook(bring)
        layer.register_forward_hook(leave, always_call=True)
    return model
