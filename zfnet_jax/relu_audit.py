def explain_trace_error(error):
    return None
