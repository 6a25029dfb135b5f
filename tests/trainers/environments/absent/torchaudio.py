"""Stands for torchaudio, whose wheels on PyPI want CUDA; LLaMA-Factory imports it before it looks for audio."""
