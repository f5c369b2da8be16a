"""Pure torch numerics of compression: no model, no orchestrator, no runtime is known here."""
