"""Import this before timm, to import torchvision even if its native part cannot be loaded.

Loading fails beside a torch that the wheel was not built for, such as a CPU build with a CUDA wheel. The tests use only
the Python part, which needs two native operators to be defined.
"""

import torch

try:
    import torchvision
except ModuleNotFoundError:
    pass  # then timm is missing too
except RuntimeError:  # operator torchvision::nms does not exist
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
