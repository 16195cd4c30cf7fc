def explain_trace_error(error: Exception) -> str | None:
    """A clearer message for an error of tracing a model; None if there is none."""
    del error
    return None
