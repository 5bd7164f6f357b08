"""The vLLM engine, and the plugin that prunes inside vLLM."""
