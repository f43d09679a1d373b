"""Laws that are known: analytic, Bayesian and discrete ones."""
