"""The actors: asyncio shells around the pure cores of `rounds`, with durable state, and their supervisor.

`runtime` is what they share (reading, verifying, the outbox), `state` the file that makes a restart safe; one
module for each of device, aggregator, gate and controller.
"""
