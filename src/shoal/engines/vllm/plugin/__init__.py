"""Elastic memory inside vLLM: a worker and a scheduler given to it by its own flags, and the pager between them.

Runs in vLLM's processes, so nothing here imports more than the standard library, msgspec, torch, vLLM and
`shoal.memory`.
"""
