"""vLLM, as an engine of Shoal. Parts of this package run inside vLLM's processes, so importing it costs nothing."""
