"""Elastic memory: engines reserve addresses for their whole KV cache and back them page by page.

Usable without the rest of Shoal. It runs inside engines, so importing it loads the standard library and msgspec
only; the CUDA driver's bindings and torch are loaded by the calls that need them.
"""
