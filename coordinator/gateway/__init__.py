"""I/O out to services: sends Calls, classifies answers.  Retries and breakers are the engine's decisions."""
