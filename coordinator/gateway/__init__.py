"""I/O out to services: sends Calls, classifies answers.  Decides nothing else: retries and breakers are the engine's."""
