"""What heads do on inputs made for the question: probes, needles, behaviour against control."""
