"""A merged language model as one GGUF file, which llama.cpp and Ollama run."""
