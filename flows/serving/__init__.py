"""Prefect's server with its worker and deployment, and the web pages; on the loopback address alone."""
