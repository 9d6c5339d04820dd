"""Build the wheels: with compiled kernels for Linux on x86-64 and aarch64 and for macOS on arm64, and one without.

``make wheels`` runs it on Linux x86-64. The C++ compiler is ziglang's, which has the C libraries of all platforms. The
nvcc that ``sbnref info`` finds compiles the CUDA kernels, for the x86-64 wheel only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from sbnref.impls import build
from sbnref.impls.toolkit import find_toolkit

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "dist"
MOST_MEGABYTES = 15
#: For each platform's name in a wheel: zig's name, and the instruction sets to compile for.
PLATFORMS = {
    "manylinux_2_28_x86_64": ("x86_64-linux-gnu.2.28", ("avx512", "avx2", "default")),
    "manylinux_2_28_aarch64": ("aarch64-linux-gnu.2.28", ("default",)),
    "macosx_11_0_arm64": ("aarch64-macos.11.0", ("default",)),
}
GPUS = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX"]
CUDA_RELEASE = f"{build.INSTALLED_CUDA}.0"


def zig(target: str) -> tuple[str, ...]:
    """Return the command of the C++ compiler for a platform."""
    return sys.executable, "-m", "ziglang", "c++", "-target", target, "-fPIC", "-std=c++20"


def run(*command: object) -> None:
    """Run a command, and raise an error if it fails."""
    subprocess.run([str(word) for word in command], check=True)


def stand_in(target: str, folder: Path) -> list[str]:
    """Return the linker's flags for PyTorch's library, which this machine lacks for other platforms.

    On Linux, kernels are linked to a stand-in with the functions of PyTorch's C interface, so that any other undefined
    function is an error. On macOS, the loader looks the functions up.
    """
    if "macos" in target:
        return ["-undefined", "dynamic_lookup", "-Wl,-install_name,@rpath/sbnref.so"]
    headers = (Path(torch.__file__).parent / "include").glob("torch/csrc/**/c/shim.h")
    names = {name for header in headers for name in re.findall(r"\b((?:aoti_)?torch_\w+)\(", header.read_text())}
    source = folder / "torch.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(names)))
    options = ("-x", "c", "-w", "-shared", "-Wl,-soname,libtorch_cpu.so")
    run(*zig(target)[:-1], *options, source, "-o", folder / "libtorch_cpu.so")
    return ["-Wl,-z,defs", f"-L{folder}", "-ltorch_cpu"]


def link(target: str, objects: list[Path], torch_flags: list[str], library: Path) -> None:
    """Link objects into a library without debugging symbols."""
    run(*zig(target), "-shared", "-s", *objects, *torch_flags, "-o", library)
    print(f"{library}: {library.stat().st_size / 1e6:.1f} MB", flush=True)


def cpu_kernels(platform: str, folder: Path, libraries: Path) -> None:
    """Build the kernels for CPU tensors, one library per instruction set."""
    target, instructions = PLATFORMS[platform]
    torch_flags = stand_in(target, folder)
    for name in instructions:
        objects = folder / name
        objects.mkdir()
        flags = (*build.CPU_FLAGS, *build.INSTRUCTIONS[name])
        made = build.compile_sources(build.CPU.sources, objects, zig(target), flags)
        link(target, made, torch_flags, libraries / f"cpu_{name}.so")


def cuda_kernels(platform: str, folder: Path, libraries: Path) -> None:
    """Build the CUDA kernels, with CUDA's runtime inside."""
    target, _ = PLATFORMS[platform]
    toolkit = find_toolkit(CUDA_RELEASE)
    objects = folder / "cuda"
    objects.mkdir()
    nvcc = (str(toolkit.home / "bin" / "nvcc"), "-Xcompiler=-fPIC", "--compress-mode=size", *build.gpu_flags(GPUS))
    includes = ("-isystem", str(toolkit.home / "include"))
    made = build.compile_sources(build.CUDA_SOURCES, objects, nvcc, build.NVCC_FLAGS)
    made += build.compile_sources(build.HOST_SOURCES, objects, zig(target), ("-O2", "-fvisibility=hidden", *includes))
    runtime = next(file for name in ("lib64", "lib") if (file := toolkit.home / name / "libcudart_static.a").exists())
    link(
        target,
        [*made, runtime],
        [*stand_in(target, folder), "-ldl", "-lpthread", "-lrt"],
        libraries / f"cuda{build.INSTALLED_CUDA}.so",
    )


def pack(folder: Path, **variables: str) -> None:
    """Pack a wheel by setup.py, which reads the environment variables; ``folder`` is for temporary files."""
    config = folder / "setup.cfg"
    config.write_text(f"[build]\nbuild_base={folder}/build\n[egg_info]\negg_base={folder}\n")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(WHEELS))
    environment = {**os.environ, "DIST_EXTRA_CONFIG": str(config), **variables}
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True, env=environment)


def main() -> None:
    """Build the wheels of the platforms on the command line, and the wheel without kernels for all others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--platforms", nargs="+", choices=PLATFORMS, default=list(PLATFORMS), help="all by default")
    parser.add_argument("--without-cuda", action="store_true", help="leave the CUDA kernels out")
    arguments = parser.parse_args()
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        sys.exit("expected Linux on x86-64")
    work = ROOT / "build" / "wheels"
    shutil.rmtree(work, ignore_errors=True)
    for platform in arguments.platforms:
        folder, libraries = work / platform, work / platform / "libraries"
        libraries.mkdir(parents=True)
        cpu_kernels(platform, folder, libraries)
        if platform.endswith("x86_64") and not arguments.without_cuda:
            cuda_kernels(platform, folder, libraries)
        pack(folder, SBNREF_LIBRARIES=str(libraries), SBNREF_PLATFORM=platform)
    (work / "any").mkdir()
    pack(work / "any", SBNREF_BUILD_CPU="0")
    for wheel in WHEELS.glob("*.whl"):
        size = wheel.stat().st_size / 1e6
        print(f"{wheel.name}: {size:.1f} MB")
        if size > MOST_MEGABYTES:
            sys.exit(f"expected wheels of at most {MOST_MEGABYTES} MB")


if __name__ == "__main__":
    main()
