"""How fast the client is, how much memory it takes, and how it compares.

``python -m benchmarks`` measures everything, prints tables and writes them, the figures as JSON and a
chart. ``README.rst`` says what each measurement is.
"""
