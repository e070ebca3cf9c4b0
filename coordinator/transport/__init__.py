"""I/O in: TCP, HTTP, gRPC.  Each only parses, authenticates and formats; all three call one `Front`."""
