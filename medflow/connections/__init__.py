"""Connections: where servers are, who we are to them, and how patiently they are asked.

`endpoints` are the settings' models; `http` makes clients of them; `secrets` are resolved where they are used.
"""
