"""Running models: devices, safe weights, and the loop that keeps a device busy. torch is imported only when needed."""
