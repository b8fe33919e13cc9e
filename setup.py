"""The C++ core: one extension, whose ops are compiled once for each instruction set. All else is in pyproject.toml."""

import os
import platform
import sys
from glob import glob
from pathlib import Path

import pybind11
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine() in ("x86_64", "AMD64")
FLAGS = """-std=c++17 -O3 -g1 -Wall -fno-math-errno -fno-trapping-math -ffp-contract=fast -fvisibility=hidden
    -fopenmp-simd -pthread""".split()
ISAS = {"base": ["-DEF_NS=base", "-DEF_ISA=128"]}  # csrc/isa/<name>.cpp: its own flags
if X86:
    avx512 = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")]
    ISAS["avx2"] = ["-DEF_NS=avx2", "-DEF_ISA=256", "-mavx2", "-mfma"]
    ISAS["avx512"] = ["-DEF_NS=avx512", "-DEF_ISA=512", "-mavx2", "-mfma", *avx512]


def stale(obj: str, source: str) -> bool:
    """Whether the object is older than anything it was made from, which the compiler listed next to it (-MMD)."""
    listed = Path(obj).with_suffix(".d")
    if not listed.exists():
        return True
    made_from = [Path(name) for name in listed.read_text().replace("\\\n", " ").split()[1:]]
    return not all(f.exists() and f.stat().st_mtime < Path(obj).stat().st_mtime for f in [*made_from, Path(__file__)])


class BuildExt(build_ext):
    def build_extension(self, ext):
        compile_one = self.compiler._compile

        def compile_with_isa_flags(obj, src, kind, cc_args, extra, pp_opts):
            path = Path(src)
            own = ISAS[path.stem] if path.parent.name == "isa" else []
            compile_one(obj, src, kind, cc_args, [*extra, *own], pp_opts)

        asked = os.environ.get("CXXFLAGS", "").split()  # the last word: setuptools puts them first
        ext.extra_compile_args, ext.extra_link_args = [*FLAGS, "-MMD", *asked], ["-pthread"]
        self.compiler._compile = compile_with_isa_flags
        super().build_extension(ext)


core = Extension(
    "electra_fast._C",
    ["csrc/bindings.cpp", "csrc/threads.cpp", *(f"csrc/isa/{isa}.cpp" for isa in ISAS)],
    include_dirs=[pybind11.get_include()],
    define_macros=[("EF_X86", None)] if X86 else [],
    depends=["setup.py", *glob("csrc/**/*.*", recursive=True)],
    optional="build_ext" not in sys.argv,  # without a compiler an install goes on: the reference in PyTorch runs
    language="c++",
)

if __name__ == "__main__":
    ParallelCompile("EF_BUILD_JOBS", needs_recompile=stale).install()
    setup(ext_modules=[core], cmdclass={"build_ext": BuildExt})
