"""What is made before a run starts: keys, certificates, the manifest, deployments, and what brokers must have."""
