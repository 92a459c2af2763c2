"""Simulated NATS servers with JetStream, as the production log meets them, and what goes wrong within them."""
