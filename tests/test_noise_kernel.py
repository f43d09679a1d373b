"""The noise in one kernel: under Triton's interpreter on a CPU, and as it is on CUDA.

Triton is no dependency: without it the reference alone makes the noise, and these tests are skipped.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from scoretk.core.noise import Noise, has_kernel, philox4x32

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

IDS = [0, 17, 999, 4_000_000_000, 2**32 - 1]
STEPS = [0, 1, 70_000, 2**32 - 1]
SEEDS = [0, 0x1234567890ABCDEF, 2**64 - 1]
KINDS = ["normal", "uniform", "rademacher"]


def differences(device):
    """The largest difference to the reference on the CPU, by seed, dtype, kind and size of event."""
    from scoretk.core.noise_kernel import fused_noise, transform_constants

    found = {}
    for seed in SEEDS:
        for dtype in (torch.float32, torch.float64):
            noise = Noise(seed, torch.tensor(IDS), dtype=dtype)
            key, ids, steps = (
                v.to(device) for v in (noise._key_tensor, noise.chains, torch.tensor(STEPS))
            )
            ids = torch.stack([ids, ids + 1], 1)[
                :, 0
            ]  # a part of the chains: not next to each other
            constants = transform_constants(dtype, torch.device(device))
            for kind, name in enumerate(KINDS):
                for n in (1, 2, 3, 4, 7, 300):
                    word = 1000 | kind << 24
                    made = fused_noise(kind, key, constants, word, steps, ids, n).cpu()
                    reference = [getattr(noise, name)(s, 1000, (n,)) for s in STEPS]
                    error = float((made - torch.stack(reference)).abs().max())
                    found[seed, str(dtype)[6:], name, n] = error
    return found


def check(found):
    assert len(found) == len(SEEDS) * 2 * len(KINDS) * 6
    for (_, dtype, name, _), error in found.items():
        digits = {"float32": 2e-6, "float64": 1e-14}[dtype]  # of numbers up to 9.5, by another log
        assert error <= (digits if name == "normal" else 0.0)


INTERPRETED = """
import torch
from tests.test_noise_kernel import check, differences, words
check(differences("cpu"))
words()
"""


def words():
    """The known answer of Random123: counter and key of zeros, read from signs and uniforms alike."""
    assert philox4x32((0, 0, 0, 0), (0, 0))[0] == 0x6627E8D5
    from scoretk.core.noise_kernel import fused_noise, transform_constants

    none, one = torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    constants = transform_constants(torch.float64, torch.device("cpu"))
    u = fused_noise(1, none, constants, 0, one, one, 4).flatten()
    known = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], dtype=torch.float64)
    assert torch.equal((u * 2**32).floor(), known)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel itself is tested below")
def test_the_kernel_agrees_with_the_reference_under_the_interpreter():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_the_kernel_agrees_with_the_reference_on_the_device(device):
    if not has_kernel(device):
        pytest.skip("no kernel on this device")
    check(differences(device))


def test_noise_on_the_device_is_that_of_the_cpu(device):
    if not has_kernel(device):
        pytest.skip("no kernel on this device")
    here, there = Noise(5, 100), Noise(5, 100, device=device)
    for name in KINDS:
        for step in (0, 3, 3000):
            want = getattr(here, name)(step, 2, (3, 5))
            for given in (step, torch.tensor(step, device=device)):
                made = getattr(there, name)(given, 2, (3, 5)).cpu()
                assert (made - want).abs().max() <= (2e-6 if name == "normal" else 0)


def test_a_cuda_graph_reads_step_and_key_from_the_device(device):
    if not has_kernel(device):
        pytest.skip("no kernel on this device")
    noise, step = Noise(5, 64, device=device), torch.zeros((), dtype=torch.int64, device=device)
    noise.normal(step, 2, (6,))  # compiled before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = noise.normal(step, 2, (6,))
    for k in (0, 1, 70_000):
        step.fill_(k)
        graph.replay()
        assert torch.equal(made, noise.normal(step, 2, (6,)))
        assert (made.cpu() - Noise(5, 64).normal(k, 2, (6,))).abs().max() < 2e-6
