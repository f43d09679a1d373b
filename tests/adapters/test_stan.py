"""Stan itself, of httpstan's wheel, behind bridgestan's class: names, order, densities, types, what it refuses.

bridgestan compiles its interface from sources that it fetches; `stan_interface.cpp` has the functions that its class calls.
"""

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import scoretk as stk
from scoretk.errors import InvalidArgument

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
SCHOOLS = """
data { int J; vector[J] y; vector[J] sigma; }
parameters { real mu; real<lower=0> tau; vector[J] theta; }
model {
  if (mu > 300) reject("mu is ", mu);
  if (mu < -300) target += not_a_number();
  mu ~ normal(0, 5); tau ~ cauchy(0, 5); theta ~ normal(mu, tau); y ~ normal(theta, sigma);
}
generated quantities { real again = normal_rng(mu, tau); }
"""
KINDS = """
data { array[2, 3] real grid; }
parameters {
  real<lower=-1, upper=2> bounded; simplex[3] s; ordered[3] o; positive_ordered[2] po; unit_vector[3] u;
  cholesky_factor_corr[3] Lc; corr_matrix[3] C; cov_matrix[2] S; cholesky_factor_cov[3, 2] Lv;
  matrix[2, 3] M; array[2] matrix[2, 3] A; array[2, 2] vector[3] v; complex z; tuple(real, vector[2]) pair;
  vector<offset=1, multiplier=2>[2] om; array[2] simplex[2] ss; vector[0] empty; vector<lower=bounded>[2] above;
}
transformed parameters { real twice = 2 * bounded; }
model {
  s ~ dirichlet([2, 3, 4]'); o ~ normal(0, 1); po ~ exponential(1);
  Lc ~ lkj_corr_cholesky(2); C ~ lkj_corr(2); S ~ inv_wishart(4, identity_matrix(2)); to_vector(Lv) ~ normal(0, 1);
  to_vector(M) ~ normal(0, 1); om ~ normal(0, 1); above ~ normal(bounded, 1);
  for (i in 1:2) {
    to_vector(A[i]) ~ normal(0, 1); ss[i] ~ dirichlet([1, 2]');
    for (j in 1:2) v[i, j] ~ normal(to_vector(grid[i]), 1);
  }
  get_real(z) ~ normal(0, 1); get_imag(z) ~ normal(1, 1); pair.1 ~ normal(0, 1); pair.2 ~ normal(2, 1);
}
"""
SHAPES = {
    "bounded": (), "s": (3,), "o": (3,), "po": (2,), "u": (3,), "Lc": (3, 3), "C": (3, 3), "S": (2, 2), "Lv": (3, 2),
    "M": (2, 3), "A": (2, 2, 3), "v": (2, 2, 3), "z.real": (), "z.imag": (), "pair:1": (), "pair:2": (2,), "om": (2,),
    "ss": (2, 2), "above": (2,),
}  # fmt: skip


@pytest.fixture(scope="module")
def stan():
    with warnings.catch_warnings():  # of the library itself, at its first import
        warnings.simplefilter("ignore")
        return pytest.importorskip("bridgestan")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a program, and returns the library's path."""
    spec = find_spec("httpstan")
    if spec is None:
        pytest.skip("httpstan, which has Stan's sources, is not installed")
    home, folder = Path(spec.origin).parent, tmp_path_factory.mktemp("stan")
    interface = (Path(__file__).parent / "stan_interface.cpp").read_text()
    made = {}

    def library(name, program):
        if name not in made:
            source = folder / f"{name}.stan"
            source.write_text(program)
            stanc = [home / "stanc", "--name", name, "--print-cpp", source]
            code = subprocess.run(stanc, check=True, capture_output=True, text=True).stdout
            whole = folder / f"{name}.cpp"
            whole.write_text(code + interface)
            made[name] = folder / f"{name}.so"
            flags = "-O0 -std=c++17 -shared -fPIC -w -D_REENTRANT -DSTAN_THREADS -DBOOST_DISABLE_ASSERTS"
            links = [
                f"-I{home / 'include'}",
                f"-L{home / 'lib'}",
                "-l:libtbb.so.2",
                f"-Wl,-rpath,{home / 'lib'}",
            ]
            told = ["g++", *flags.split(), whole, "-o", made[name], *links]
            subprocess.run(told, check=True, capture_output=True)
        return made[name]

    return library


@pytest.fixture(scope="module")
def schools(stan, compiled):
    return stan.StanModel(compiled("schools", SCHOOLS), {"J": 8, "y": Y, "sigma": SIGMA})


@pytest.fixture(scope="module")
def kinds(stan, compiled):
    return stan.StanModel(compiled("kinds", KINDS), {"grid": [[0, 1, 2], [3, 4, 5]]})


def energy(mu, tau, theta):
    prior = td.Normal(0.0, 5.0).log_prob(mu) + td.HalfCauchy(5.0).log_prob(tau)
    within = td.Normal(mu[:, None], tau[:, None]).log_prob(theta).sum(1)
    return -prior - within - td.Normal(theta, torch.tensor(SIGMA)).log_prob(torch.tensor(Y)).sum(1)


def free(n, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, generator=generator, dtype=torch.float64)


def test_eight_schools_have_the_density_and_gradient_that_they_have_in_torch(schools):
    field = stk.from_(schools)
    true = stk.Energy(energy, variables={"mu": (), "tau": constraints.positive, "theta": (8,)})
    assert dict(field.variables.layout.shapes) == {"mu": (), "tau": (), "theta": (8,)}
    z = free(16, 10)
    found, expected = (f.energy_and_grad(z) for f in (field, true))
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)
    apart = found[0] - expected[0]  # a constant, which Stan leaves out
    torch.testing.assert_close(apart, apart[:1].expand(16), rtol=0, atol=1e-5)


def test_what_stan_rejects_is_outside_and_what_is_nan_fails(schools):
    field = stk.from_(schools)
    z = torch.zeros(3, 10, dtype=torch.float64)
    z[0, 0], z[1, 0] = 301, -301
    at = field.energy(z)
    assert at[0] == torch.inf
    assert at[1].isnan()
    assert at[2].isfinite()
    draws = stk.sample(field, stk.MALA(0.1), chains=4, steps=5, warmup=5)
    assert draws.failures == {}


def test_names_and_orders_are_stans(kinds):
    """Values by name lead, as JSON, to the same point: Stan's arrays run through their first axis fastest."""
    field = stk.from_(kinds)
    layout = field.variables.layout
    assert dict(layout.shapes) == SHAPES
    z = free(4, kinds.param_unc_num()) / 2
    x = field.constrain(z)
    parts = layout.split(x)
    for row in range(len(z)):
        values = {n: v[row].tolist() for n, v in parts.items() if ":" not in n and "." not in n}
        values["z"] = [float(parts["z.real"][row]), float(parts["z.imag"][row])]
        values["pair"] = {"1": float(parts["pair:1"][row]), "2": parts["pair:2"][row].tolist()}
        back = kinds.param_unconstrain_json(json.dumps(values | {"empty": []}))
        found, expected = kinds.param_constrain(back), kinds.param_constrain(z[row].numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    expected = [kinds.log_density(row) for row in z.numpy()]
    torch.testing.assert_close(-field.energy(z), torch.tensor(expected, dtype=torch.float64))
    inside = [kinds.log_density(row, jacobian=False) for row in z.numpy()]
    at = torch.tensor(inside, dtype=torch.float64)
    torch.testing.assert_close(-field.users_energy(x), at, rtol=1e-6, atol=1e-6)


def test_draws_of_float32_are_points_to_start_from(kinds):
    """Stan takes a simplex for one to 1e-8 only."""
    field = stk.from_(kinds)
    draws = stk.sample(field, stk.MALA(0.05), chains=8, steps=5, warmup=5)
    assert draws.failures == {}
    assert draws.final.dtype == torch.float32
    assert bool(field.transform.contains(draws.final).all())
    init = {name: draws[name][:, -1] for name in SHAPES}
    for start in (draws.final, init):
        assert stk.sample(field, stk.MALA(0.05), chains=8, steps=2, init=start).failures == {}
    wrong = init | {"s": init["s"] + 1e-3}
    with pytest.raises(InvalidArgument, match=r"init\['s'\].*the parameters of Stan"):
        stk.sample(field, stk.MALA(0.05), chains=8, steps=2, init=wrong)


def test_data_are_a_mapping_a_text_or_a_file(stan, compiled, schools, tmp_path):
    data = {"J": 8, "y": Y, "sigma": SIGMA}
    file = tmp_path / "data.json"
    file.write_text(json.dumps(data))
    z, library = free(2, 10), compiled("schools", SCHOOLS)
    expected = stk.from_(schools).energy(z)
    for given in (json.dumps(data), file):
        again = stan.StanModel(library, given, warn=False)
        assert torch.equal(stk.from_(again).energy(z), expected)


def test_a_model_without_parameters_is_refused(stan, compiled):
    program = "data { real y; } model { y ~ normal(0, 1); }"
    with pytest.raises(InvalidArgument, match="a model with parameters"):
        stk.from_(stan.StanModel(compiled("bare", program), {"y": 1.0}))


RESUMED = """
import sys, bridgestan, scoretk as stk
library, data, checkpoint = sys.argv[1:]
field = stk.from_(bridgestan.StanModel(library, data))
draws = stk.sample(field, stk.MALA(0.1), chains=2, steps=6, warmup=4, checkpoint=checkpoint)
print(draws.final.double().sum().item())
"""


def test_a_run_goes_on_in_another_process(compiled, tmp_path):
    """The model's place in memory is no part of what it is; its data are."""
    library, checkpoint = compiled("schools", SCHOOLS), str(tmp_path / "run")
    data = {"J": 8, "y": Y, "sigma": SIGMA}

    def run(given):
        told = [sys.executable, "-c", RESUMED, str(library), json.dumps(given), checkpoint]
        ran = subprocess.run(told, check=False, capture_output=True, text=True)
        return ran.stdout.strip(), ran.stderr

    first, _ = run(data)
    again, said = run(data)
    assert first
    assert again == first, said
    assert "belongs to another run" in run(data | {"y": SIGMA})[1]
