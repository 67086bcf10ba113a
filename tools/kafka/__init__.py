"""Kafka brokers on loopback without docker."""
