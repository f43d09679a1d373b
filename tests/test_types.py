"""What a type checker sees of the package from outside: an editable install, every public name, a script in strict mode."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import scoretk as stk

SCRIPT = """
from collections.abc import Callable

from torch import Tensor

import scoretk as stk


def energy(x: Tensor) -> Tensor:
    return x.square().sum(1) / 2


target = stk.Energy(energy, (2,))
draws = stk.sample(target, stk.MALA(0.3), chains=4, steps=5)
x: Tensor = draws.x
name: Tensor = draws["x"]
some: stk.Draws = draws[:2]
tuned = stk.sample(target, stk.NUTS(), chains=4, steps=5, warmup=stk.Warmup(20))
again: Tensor = stk.sample(stk.tempered(target, 2.0), stk.ParallelTempering()).x
verdict: str = draws.summary().verdict
path = stk.VP()


def net(x: Tensor, t: Tensor) -> Tensor:
    return x


field = stk.Diffusion(net, (2,), path, predicts="data")
final: Tensor = stk.sample(field, stk.ProbabilityFlow(steps=4)).final
noisy: Tensor = stk.sample(field, stk.ReverseSDE(steps=4)).final
nats: Tensor = stk.log_prob(field, final).value
log_z: Tensor = stk.log_partition(target, kernel=stk.HMC(0.1)).value
start: Tensor = field.base.draw(3, stk.Noise(0, 3))
failed: bool = int(draws.status[0]) == stk.Status.OK
caught: type[Exception] = stk.errors.InvalidArgument
cd = stk.ContrastiveDivergence(stk.ULA(0.1), start=stk.ReplayBuffer(10))
grid: Callable[..., object] = stk.grids.grid
picture = stk.plot.samples(draws)
print(picture, draws.plot("rank"))
"""
WRONG = {
    "x is a tensor": "wrong: int = draws.x",
    "a setting has a type": "stk.MALA(step_size='large')",
    "a name that there is not": "stk.Mala(0.3)",
    "an argument that there is not": "stk.sample(target, chain=3)",
}
"""Mistakes that a checker finds, if it sees the types at all."""


def script(folder, *more):
    names = "\n".join(f"_{i} = stk.{name}" for i, name in enumerate([*stk.__all__, *stk._MODULES]))
    file = folder / "script.py"
    file.write_text("\n".join([SCRIPT, names, *more, ""]))
    return file


def told(folder, *command):
    """What a checker says of a script outside the checkout, and its exit status."""
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return ran.stdout + ran.stderr, ran.returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_a_users_script_passes_mypy(tmp_path):
    check = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"))
    said, status = told(tmp_path, *check, str(script(tmp_path)))
    assert status == 0, said
    said, status = told(tmp_path, *check, str(script(tmp_path, *WRONG.values())))
    assert status == 1
    assert said.count("error:") == len(WRONG), said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_users_script_passes_pyright(tmp_path):
    """Of npm, in a folder of its own: `npm install pyright`."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("pyright needs npm")
    said, status = told(tmp_path, npm, "install", "--no-audit", "--no-fund", "pyright@1.1.414")
    assert status == 0, said
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    check = (str(tmp_path / "node_modules/.bin/pyright"), "--pythonpath", sys.executable)
    said, status = told(tmp_path, *check, str(script(tmp_path)))
    assert status == 0, said
    said, status = told(tmp_path, *check, str(script(tmp_path, *WRONG.values())))
    assert status == 1
    lines = {line.split(":")[1] for line in said.splitlines() if " - error: " in line}
    assert len(lines) == len(WRONG), said


def test_an_editable_install_is_a_path_that_checkers_follow():
    """An import hook, as setuptools makes it for some layouts, is invisible to them."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert 'package-dir = { "" = "." }' in text
    assert (Path(stk.__file__).parent / "py.typed").exists()
