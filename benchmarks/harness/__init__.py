"""The benchmark: adapted models beside the frozen one, in time, bytes and calls, with the table and its charts."""
