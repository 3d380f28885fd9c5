"""HTTP to messages and back: the OpenAI-compatible API."""
