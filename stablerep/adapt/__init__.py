"""Teach a diffusion model one's own photos: a LoRA, or the whole UNet.

run.adapt is the entry.
"""
