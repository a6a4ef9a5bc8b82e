"""The toy experiment: why angles matter."""
