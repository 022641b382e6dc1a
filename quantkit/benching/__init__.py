"""``quantkit bench``: latency, memory, size and accuracy of one model in many runtimes."""
