"""Tables and verdicts; reads records only, never torch."""
