"""What needs no torch, under the other Pythons of this machine: ArviZ 1.x, and the discovery of plugins.

Each gets an environment of its own, from the package index. Where there is no such Python nothing is tested; where there is one
and its packages cannot be installed, the test fails.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("arviz>=1.1,<2", "matplotlib", "h5netcdf", "h5py", "zarr", "numpy", "pytest")
TESTS = ("tests/torchfree", "tests/test_plugins_discovery.py", "tests/test_plugins_spec.py")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_what_needs_no_torch(version, tmp_path):
    python, own = found(version), str(tmp_path / "bin" / "python")
    if python is None:
        pytest.skip(f"no Python {version} here")
    for command in (
        (python, "-m", "venv", str(tmp_path)),
        (own, "-m", "pip", "install", "--quiet", *PACKAGES),
    ):
        made = run(*command)
        assert made.returncode == 0, f"{command[1:4]}: {made.stderr[-2000:]}"
    plain = ("--noconftest", "--override-ini=addopts=", "--override-ini=filterwarnings=")
    told = run(own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plain, *TESTS)
    assert told.returncode == 0, told.stdout[-3000:]
    assert " passed" in told.stdout


def found(version):
    """An interpreter of this version, on the path or among pyenv's; None where there is none."""
    ours = Path.home().glob(f".pyenv/versions/{version}*/bin/python")
    known = [shutil.which(f"python{version}"), *map(str, ours)]
    return next((p for p in known if p and run(p, "-c", "").returncode == 0), None)


def run(*command):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
