"""The device mesh, the sharding table, batches over devices, and several hosts."""
