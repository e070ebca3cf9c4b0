"""Whether a submission may join: pure questions, asked in one order by `gate.admit`."""
