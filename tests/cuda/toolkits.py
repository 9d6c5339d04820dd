"""Toolkits and compilers that are folders and scripts, for tests of how libraries are built."""

import os
import shutil
from pathlib import Path


def made_up(home: Path, release: str) -> Path:
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime_api.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return home


def compiler_that_made(library: Path, folder: Path) -> str:
    """A compiler that leaves objects empty and, instead of linking them, copies a library that was built before."""
    script = folder / "c++"
    script.write_text(
        f"""#!/bin/sh
        for word in "$@"; do
            [ "$last" = -o ] && output=$word
            case $word in -c | -shared) step=$word ;; esac
            last=$word
        done
        case $step in
            -c) : > "$output" ;;
            -shared) cp {library} "$output" ;;
            *) exec {shutil.which(os.environ.get("CXX", "c++"))} "$@" ;;
        esac
        """
    )
    script.chmod(0o755)
    return str(script)
