"""A trained ensemble behind an endpoint that OpenAI clients can use, in one process or on Ray Serve."""
