"""Models of scikit-learn's handwritten digits: networks, recipes and weights."""
