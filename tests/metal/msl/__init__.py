"""Executes unmodified Metal Shading Language on the CPU, and checks it: see the README beside this package.

A `Program` is a .metal source translated to C++ and compiled; `launch` runs one of its kernels on plain memory. Nothing
here knows Metal's host interface, our kernels or our models, and nothing here has been compared with an Apple GPU.
"""
