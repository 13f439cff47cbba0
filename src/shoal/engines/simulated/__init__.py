"""An engine without a model: a process that speaks vLLM's HTTP, for tests, for trials and for the policy simulator.

Only `adapter` runs in Shoal's own process. Everything else here needs the standard library alone, so that the
process starts in a fraction of a second and many of them fit on a small machine.
"""
