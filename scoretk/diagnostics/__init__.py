"""Diagnostics: distances between samples, and the quality of samples where labelled data or training data are at hand."""

from scoretk.diagnostics.distances import mmd, sliced_wasserstein
from scoretk.diagnostics.quality import Classifier, Copies, Verdict, balance, copies

__all__ = ["Classifier", "Copies", "Verdict", "balance", "copies", "mmd", "sliced_wasserstein"]
