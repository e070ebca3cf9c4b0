"""The log: partitioned append-only storage behind one port, and the driver that owns a partition of it."""
