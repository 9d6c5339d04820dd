"""Import this before timm: it lets torchvision be imported where its native part cannot be loaded.

That is so beside a build of torch other than the one its wheel was made for, as with a wheel for CUDA and torch for
CPUs. Only its Python part is used here, which asks of the native one that two operators be there.
"""

import torch

try:
    import torchvision
except ModuleNotFoundError:
    pass  # neither is timm there, then
except RuntimeError:  # operator torchvision::nms does not exist
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
