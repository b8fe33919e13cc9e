"""What the build promises: no OpenMP but torch's, no instruction set's code where another runs, no need of a core."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from electra_fast.ops._core import core, why

ROOT = Path(__file__).parents[2]
built = pytest.mark.skipif(core is None, reason=why)
checkout = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not a checkout")
IMPORT = "from electra_fast.ops._core import core, why\n"


def python(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env={**os.environ, **environment}, cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_core_is_built_where_a_compiler_is():
    assert core is not None or shutil.which("c++") is None, why


@checkout
def test_setup_is_short():
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 60


def built_object(isa: str, stale: Callable[[str, str], bool]) -> Path | None:
    """The object that `make core` left of csrc/isa/<isa>.cpp, where no source is newer."""
    objects = ROOT.glob(f"build/temp.*{sys.implementation.cache_tag}/csrc/isa/{isa}.o")
    return next((path for path in objects if not stale(str(path), "")), None)


@checkout
@pytest.mark.skipif(shutil.which("c++") is None or shutil.which("nm") is None, reason="no compiler")
def test_isa_objects_define_no_weak_symbols(tmp_path):
    """The linker keeps one definition of a weak symbol: it could be the one that only a newer CPU can run."""
    setup = runpy.run_path(str(ROOT / "setup.py"))
    assert len(setup["ISAS"]) == len(list((ROOT / "csrc/isa").glob("*.cpp"))) or not setup["X86"]
    for isa, flags in setup["ISAS"].items():
        made = built_object(isa, setup["stale"]) or tmp_path / f"{isa}.o"
        if not made.exists():
            source = ROOT / f"csrc/isa/{isa}.cpp"
            command = ["c++", "-fPIC", "-c", *setup["FLAGS"], *flags, str(source), "-o", str(made)]
            subprocess.run(command, check=True)
        listed = subprocess.run(["nm", "-C", made], capture_output=True, text=True, check=True).stdout
        assert f"ef::{isa}::ops" in listed
        # DW.ref.* is a pointer to the exception personality: data, the same everywhere.
        assert [line for line in listed.splitlines() if re.search(r" [WVu] (?!DW\.ref)", line)] == []
        others = [line for line in listed.splitlines() if re.search(r" [TBDR] ", line) and f"ef::{isa}::" not in line]
        assert others == [], "defined outside the namespace of its instruction set"


@built
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_core_brings_no_openmp():
    """A second runtime beside torch's would have threads of its own; the core's are those of csrc/threads.cpp."""
    needed = subprocess.run(["objdump", "-p", core.__file__], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in needed and not re.search(r"gomp|iomp|libomp", needed), needed


@built
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="not Linux")
def test_import_starts_no_thread():
    """Of a pool that is there before a fork, the child would have none."""
    count = "len(os.listdir('/proc/self/task'))"
    imports = "import torch, numpy, tokenizers, safetensors, tqdm, matplotlib\n"
    done = python(
        f"import os\n{imports}before = {count}\nimport electra_fast\nprint({count} - before)", OMP_NUM_THREADS="4"
    )
    assert done.stdout.strip() == "0", (done.stdout, done.stderr)


@built
def test_isa_is_chosen():
    for asked, isa in (("base", "base"), ("", core.isas()[-1])):
        done = python(IMPORT + "print(core.isa(), 'and', why)", ELECTRA_FAST_ISA=asked)
        assert done.stdout.strip() == f"{isa} and {isa} (of {', '.join(core.isas())})", done.stderr


@built
def test_wrong_isa_is_an_error():
    done = python(IMPORT, ELECTRA_FAST_ISA="sse9")
    said = done.stderr.splitlines()[-1]
    assert done.returncode != 0
    assert said.startswith("ImportError") and "ELECTRA_FAST_ISA" in said
    assert "'sse9'" in said and ", ".join(core.isas()) in said and "unset it" in said


@built
def test_wrong_isa_is_one_sentence_of_the_command_line():
    command = Path(sys.executable).parent / "electra-fast"
    if not command.exists():
        pytest.skip("electra-fast is not installed beside this Python")
    environment = os.environ | {"ELECTRA_FAST_ISA": "sse9"}
    done = subprocess.run([command, "info"], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith("electra-fast: ELECTRA_FAST_ISA") and "'sse9'" in said and "unset it" in said


@checkout
def test_package_works_without_the_core(tmp_path):
    package = tmp_path / "electra_fast/ops"
    package.mkdir(parents=True)
    (tmp_path / "electra_fast/__init__.py").touch()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "electra_fast/ops/_core.py", package)
    hide = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)]\n"
    done = python(hide + IMPORT + "print(core, why)", cwd=tmp_path)
    assert done.stdout.startswith("None the C++ core is not built: install a C++17 compiler"), done.stderr
    assert done.stderr.count("RuntimeWarning: electra_fast runs its slower reference") == 1
    done = python(hide + IMPORT, cwd=tmp_path, ELECTRA_FAST_ISA="base")
    assert done.returncode != 0 and "ELECTRA_FAST_ISA asks for the C++ core" in done.stderr


@checkout
def test_sdist_and_wheel_hold_everything(tmp_path):
    """Headers and op bodies are included by others, so no list of sources names them; packages are listed by hand."""
    copy = tmp_path / "checkout"
    left_out = (".venv", ".git", "build", "dist", "runs", ".*_cache", "__pycache__", "*.egg-info", "*.so")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*left_out))
    for command in (["sdist", "--dist-dir", str(tmp_path)], ["build_py", "--build-lib", str(tmp_path / "lib")]):
        command = [sys.executable, "setup.py", "--quiet", *command]
        subprocess.run(command, cwd=copy, check=True, capture_output=True, timeout=120)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    tracked = set(listed.stdout.split())  # empty in an unpacked sdist, which has no history
    files = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert sorted((tracked or files) & files - held) == [], "left out of the sdist: see MANIFEST.in"
    assert not any(name.endswith(".so") for name in held)
    sources = {
        path.relative_to(copy) for folder in ("kernels", "electra_fast") for path in (copy / folder).rglob("*.py")
    }
    wanted = {Path("electra_fast", path) if path.parts[0] == "kernels" else path for path in sources}
    made = {path.relative_to(tmp_path / "lib") for path in (tmp_path / "lib").rglob("*.*")}
    missing = sorted((wanted | {Path("electra_fast/py.typed")}) - made)
    assert missing == [], "left out of the wheel: see [tool.setuptools] packages in pyproject.toml"
