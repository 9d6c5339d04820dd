"""Versions, devices, and the implementations that can run on them."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from .. import __version__
from ..impls import build, impl_names, why_not_yet
from ..impls.environment import VARIABLES
from .launch_plan import launch_plan, plan_in_words
from .report import Report

if TYPE_CHECKING:
    from rich.console import RenderableType


class Info(Report):
    """Information about this machine and installation. Printing it shows a table. It builds nothing.

    Attributes:
        versions: of sbnref and its dependencies, by name; None if missing.
        devices: a description of each device, by name.
        backends: the backends for process groups in this PyTorch.
        impls: by name and device, why an implementation cannot run there, or None.
        chosen: by device, the implementation that a layer uses by default.
        toolkit: the toolkit to build the CUDA kernels with, or why there is none and how to install one, in words.
        libraries: by name, the path of a built library, or None.
        build_cache: the folder for built libraries.
        built: the libraries in that folder, including those for other versions and machines.
        variables: sbnref's environment variables that are set.
        shape: the input, (N, C, *), for the launch plans.
        plans: by pass, how the CUDA kernels divide the work on a float32 tensor of that shape; empty if the kernels
            cannot be loaded.

    Args:
        shape: the shape of the input to plan for.
    """

    def __init__(self, shape: tuple[int, ...] = (32, 64, 56, 56)) -> None:
        self.versions = {
            "sbnref": __version__,
            "Python": platform.python_version(),
            "PyTorch": torch.__version__,
            "CUDA (of PyTorch)": torch.version.cuda,
            "system": platform.platform(terse=True),
        }
        self.devices = {"cpu": f"{platform.machine()}, {os.cpu_count()} cores"}
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            memory = properties.total_memory / 2**30
            architecture = f"sm_{properties.major}{properties.minor}"
            self.devices[f"cuda:{i}"] = f"{properties.name}, {memory:.0f} GiB, {architecture}"
        if torch.backends.mps.is_available():
            self.devices["mps"] = "Apple GPU"
        available = dist.is_available()
        checks = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available, "mpi": dist.is_mpi_available}
        self.backends = [name for name, is_there in checks.items() if available and is_there()]
        self.impls = {
            name: {device: why_not_yet(name, torch.device(device)) for device in self.devices} for name in impl_names()
        }
        self.chosen = {device: self._chosen(torch.device(device)) for device in self.devices}
        libraries = {name: build.built(library) for name, library in build.LIBRARIES.items()}
        self.libraries = {name: None if file is None else str(file) for name, file in libraries.items()}
        try:
            self.toolkit = str(build.find_cuda())
        except build.BuildError as error:
            self.toolkit = f"none: {error}"
        self.shape, self.plans = shape, {}
        if None in self.impls["cuda"].values():
            x = torch.empty(shape, device="meta")
            self.plans = {name: launch_plan(x, backward=name == "backward") for name in ("forward", "backward")}
        self.build_cache = build.cache()
        self.built = sorted(path.name for path in self.build_cache.glob("sbnref*") if path.is_dir())
        self.variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}

    def _chosen(self, device: torch.device) -> str:
        if (name := os.environ.get("SBNREF_IMPL") or "auto") != "auto":
            reason = self.impls.get(name, {}).get(str(device))
            return f"{name}, which cannot run" if reason is not None and not reason.startswith(build.NOT_YET) else name
        reason = self.impls.get(device.type, {}).get(str(device), "there is none for it")
        # 'auto' builds the CUDA kernels, but never the kernels for CPU tensors
        if reason is None or (device.type == "cuda" and reason.startswith(build.NOT_YET)):
            return device.type
        return "reference"

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types."""
        return {**vars(self), "build_cache": str(self.build_cache)}

    def __rich__(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, version in self.versions.items():
            table.add_row(name, version or "none")
        for device, what in self.devices.items():
            table.add_row(f"device {device}", what)
        if self.versions["CUDA (of PyTorch)"] and "cuda:0" not in self.devices:
            none = "none: PyTorch sees no CUDA GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
            table.add_row("device cuda", Text(none, "yellow"))
        table.add_row("backends", ", ".join(self.backends) or "none")
        for impl, devices in self.impls.items():
            for device, reason in devices.items():
                text = f"not on {device}: {reason}" if reason else f"runs on {device}"
                table.add_row(f"impl='{impl}'", Text(text, "yellow" if reason else "green"))
        for device, name in self.chosen.items():
            table.add_row(f"default on {device}", f"{name} (when `impl` is not given)")
        table.add_row("CUDA toolkit", self.toolkit)
        for name, file in self.libraries.items():
            if file is not None:
                table.add_row(f"library {name}", file)
        for name, plan in self.plans.items():
            table.add_row(f"plan, {name}", f"{tuple(self.shape)} float32: {plan_in_words(plan)}")
        table.add_row("build cache", f"{self.build_cache}, {len(self.built)} built")
        for name, value in self.variables.items():
            table.add_row(name, f"{value} ({VARIABLES[name]})")
            if name == "SBNREF_IMPL" and value not in ("", "auto", *self.impls):
                table.add_row("", Text(f"expected one of {('auto', *self.impls)}, got {value!r}", "yellow"))
        return table
