"""MNIST: families of models by this package's solvers and estimators, in nats or bits."""
