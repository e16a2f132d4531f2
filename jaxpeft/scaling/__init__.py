"""Scaling laws: loss as a function of model size, data and compute.

A law predicts the loss of a model that was not trained, and says how to split a budget
of FLOPs between parameters and tokens.

  laws    the laws of the literature, their published numbers, and files of laws
  flops   the FLOPs of training, by the counting rules of the literature
  plan    what a budget buys under a law: sizes, loss, hours of devices
  points  tables of losses; frontier, isoflop, parametric fit them by approaches 1, 2, 3
  trust   what speaks against a fit; results and report put a fit into words
  sensitivity   one table under every choice; spread puts the outcomes into words

Nothing here trains or reads a model. N is a number of parameters, D a number of tokens,
C a number of FLOPs, L a loss in nats per token.
"""
