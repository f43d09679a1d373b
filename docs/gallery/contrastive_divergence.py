"""
Training an energy by contrastive divergence
============================================

The energy of data goes down, that of negatives up, which Langevin steps draw from the energy as it
is. Data: points on a circle. Method: Hinton, "Training products of experts by minimizing contrastive
divergence" (2002); Tieleman, "Training restricted Boltzmann machines using approximations to the
likelihood gradient" (2008), for chains that go on.
"""

import torch

import scoretk as stk

generator = torch.Generator().manual_seed(0)
angle = 6.2832 * torch.rand(2000, generator=generator)
circle = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
circle = circle + 0.2 * torch.randn(2000, 2, generator=generator)

torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(),
    torch.nn.Linear(64, 1),
)  # fmt: skip
energy = stk.Energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 8, (2,))

# %%
# Negatives come from the same solvers as any draws.

buffer = stk.ReplayBuffer(2000, refresh=0.05)
cd = stk.ContrastiveDivergence(stk.ULA(step_size=0.02), steps=10, start=buffer, energy_decay=0.05)
optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
for _ in range(300):
    batch = circle[torch.randint(len(circle), (128,), generator=generator)]
    loss, negatives = cd(energy, batch)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print({name: round(float(value), 3) for name, value in cd.last.items()})

# %%
# The density that was learned, and draws of it by a solver that is exact.

draws = stk.sample(energy, chains=64, steps=50, warmup=100)
figure = stk.plot.field(energy, draws=draws[:16], bounds=(-2.5, 2.5, -2.5, 2.5))
