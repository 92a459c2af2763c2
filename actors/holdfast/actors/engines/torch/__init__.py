"""The engine that runs Llama models in this process, with PyTorch.

Import `holdfast.actors.engines.torch.engine` for `load_engine`. This package itself imports nothing, so that a
process which runs another engine never pays for PyTorch, nor needs the `torch` extra to be installed.
"""
