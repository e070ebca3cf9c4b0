"""The service that the benchmark's sagas call: main.go, or fallback.py where there is no Go."""
