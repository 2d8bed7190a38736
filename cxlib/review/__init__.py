"""The paper's experiments on top of the library: Eriksson, Israelsson and Kallhauge's review."""
